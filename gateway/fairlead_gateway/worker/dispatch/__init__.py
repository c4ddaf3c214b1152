"""From a parsed request to its instance.

- `admission_control`: admits, queues or refuses a request.
- `router_registry`: the routers of all models, and the fleet.
- `dispatch_queue`: requests that wait for their chosen instance.
"""
