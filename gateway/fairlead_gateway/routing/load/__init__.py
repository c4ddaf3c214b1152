"""Load: how busy endpoints are, by what gateways dispatched.

In reading order:

- `inflight`: this process's requests in flight; of a large fleet, a sample
- `shared_memory`: those of sibling workers
- `load_window`: dispatches of the last minutes
- `inter_token_times`: observed token gaps
- `prompt_sizes`: estimated tokens against reported ones, of models, callers and media parts
"""
