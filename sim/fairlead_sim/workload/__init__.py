"""Traffic for the fleet simulator, as values.

- ``traces``: the request of a trace, Mooncake's and Azure's formats, and arrival rates
- ``generators``: families of generated traffic
- ``coding_agents``: sessions of coding agents, for a closed or an open loop
- ``sources``: any of these by name
- ``trace_prompts``: prefix chains and cache keys of a trace's prompts
"""
