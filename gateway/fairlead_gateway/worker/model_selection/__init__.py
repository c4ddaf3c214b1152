"""From a client's bytes to the model that a request gets.

- `request_parser`: parses a request and finds its model.
- `route_choice`: the model behind a route's name, for all turns of a conversation; the parameters
  that the route sets, and the canary.
- `fallbacks`: the next model of a route, when one has not answered.
"""
