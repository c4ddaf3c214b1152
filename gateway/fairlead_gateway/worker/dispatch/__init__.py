"""From a parsed request to its instance.

- `admission_queue`: admits, queues or refuses a request.
- `model_admission`: the queue of one model.
- `router_registry`: the routers of all models, and the fleet.
- `late_binding_queue`: when requests that wait for their chosen instance start.
"""
