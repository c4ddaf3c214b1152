"""Routes: names of models that lead to others, by weight, as a fallback or as a copy.

- `target_choice`: from a client's name to the target of a request. Pure.
- `rewriting`: the parameters that a route sets in a body. Pure.

`fairlead.routes` has the types, and the order of fallbacks. `fairlead_gateway.proxy` has the stages
of routes.
"""
