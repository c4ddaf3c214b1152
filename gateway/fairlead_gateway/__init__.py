"""The gateway: OpenAI-compatible, routes by prefix and load.

- `supervisor`, `worker`: the two processes; `ipc`: their messages.
- `http`, `openai`, `proxy`, `routing`, `upstream`: the path of a request through a worker.
- `request_context`: the state of one request; `router_registry`, `runtime`: what its stages share.
- `journal`, `messages`: what a worker reports, and all messages of the two processes.
- `telemetry`, `native`, `errors`, `caller_key`: used everywhere.

Every other folder is a feature: its pure core, its parts of the two processes in `worker` and
`supervisor`, and its own messages.
"""
