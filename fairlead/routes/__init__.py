"""Routes: names for clients that stand for one model, or for several with weights.

- `model`: `Route`, its rules and targets, as immutable data in a fleet.
- `fallback_graph`: from the models that have failed to the one that answers instead. Pure.
"""
