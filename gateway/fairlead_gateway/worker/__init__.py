"""The worker process: serves requests, from receipt to record. See `docs/concepts/architecture.md`.

- `worker`, `services`: the process and its parts; `server`: its public port.
- `cors`: what web pages may do at that port.
- `request_context`: the state of one request; `runtime`: what its stages share.
- `router_registry`: the routers of all models, and the fleet.
- `journal`: reports to the supervisor.
- `memory_pressure`: refuses bodies when memory is short.

`fairlead_gateway.proxy` takes a request from here. Each feature has its part of a worker in its
own folder.
"""
