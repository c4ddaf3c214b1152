"""LoRA adapters of engines: which are loaded where, and requests that wait until theirs is.

- `adapter_loader`: places requests and loads adapters while requests wait.
- `instance_adapters`: the adapters of one engine, as this worker knows them.
- `downloader_client`: the calls that let a pod download an adapter before.
- `engine_commands`: the calls that list, load and unload adapters.
"""
