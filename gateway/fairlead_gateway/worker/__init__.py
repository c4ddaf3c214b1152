"""The worker process: serves requests, from receipt to record. See `docs/concepts/architecture.md`.

- `worker`, `services`: the process and its parts; `server`: its public port.

`fairlead_gateway.proxy` takes a request from here. Each feature has its part of a worker in its
own folder.
"""
