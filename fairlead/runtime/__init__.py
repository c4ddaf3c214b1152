"""Process plumbing: code that any Fairlead process needs, whatever it does.

- `clock`, `tasks`, `event_loop`, `loop_lag`: time and asyncio.
- `http_client`: the HTTP client for control traffic; `aiohttp_server`: probes and metrics.
- `file_watcher`, `atomic_write`: files that change while a process runs.
- `nonblocking_log`, `cli_options`, `process_tuning`, `compiled_build`: process start.
"""
