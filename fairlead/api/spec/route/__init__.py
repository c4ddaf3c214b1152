"""The `spec` of a ModelRoute.

- `spec`: the whole, and its conversion to a `fairlead.routes.model.Route`.
- `rewrite`: parameters that the route sets.
- `fallbacks`: other models for requests that one has not answered.
- `shadow`: another model that gets copies.
"""
