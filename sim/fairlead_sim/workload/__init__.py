"""Traffic for the fleet simulator, as values.

- ``traces``: the request of a trace, Mooncake's format, and arrival rates
- ``azure_traces``: Azure's format
- ``generators``: families of generated traffic
- ``sources``: any of these by name
- ``trace_prompts``: prefix chains and cache keys of a trace's prompts
"""
