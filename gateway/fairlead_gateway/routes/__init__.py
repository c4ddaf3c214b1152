"""Routes: names of models that lead to others, by weight, as a fallback or as a copy.

- `target_choice`: from a client's name to the target of a request. Pure.
- `rewriting`: the parameters that a route sets in a body. Pure.
- `worker`: routes, fallbacks and shadows of requests.

`fairlead.routes` has the types, and the order of fallbacks.
"""
