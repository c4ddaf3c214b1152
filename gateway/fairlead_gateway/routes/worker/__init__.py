"""Routes in a worker.

- `route_choice`: the model behind a route's name, for all turns of a conversation; the parameters
  that the route sets, and the canary.
- `fallbacks`: the next model of a route, when one has not answered.
- `shadow_traffic`: copies for the shadow of a route, whose answers are compared and dropped.
"""
