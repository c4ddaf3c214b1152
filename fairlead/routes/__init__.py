"""Routes: names for clients that stand for one model, or for several with weights.

- `model`: `Route`, its rules and targets, as immutable data in a fleet.
- `rewriting`: the parameters that a route sets in a body. Pure.
- `target_choice`: from a client's name to the target of a request. Pure.
- `fallback_graph`: from the models that have failed to the one that answers instead. Pure.
"""
