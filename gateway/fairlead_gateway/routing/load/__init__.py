"""Load: how busy endpoints are, by what gateways dispatched.

In reading order:

- `inflight`: this process's requests in flight
- `shared_memory`: those of sibling workers
- `sampled_load`: the load of a large fleet
- `load_window`: dispatches of the last minutes
- `inter_token_times`: observed token gaps
- `token_calibration`: estimated tokens against reported ones, of a model
- `prompt_sizes`: the same of each caller, and of pictures and other parts
"""
