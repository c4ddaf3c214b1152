"""The `spec` of a ModelRoute.

- `spec`: matches, rewrites, fallbacks and shadows; conversion to a `fairlead.routes.model.Route`.
"""
