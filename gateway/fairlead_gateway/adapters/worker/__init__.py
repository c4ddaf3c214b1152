"""LoRA adapters of engines: which are loaded where, and requests that wait until theirs is.

- `adapter_loader`: places requests and loads adapters while requests wait.
- `engine_commands`: the calls that list, load, unload and download adapters.
"""
