"""The `spec` of a ModelRoute.

- `spec`: the whole, and its conversion to a `fairlead.routes.model.Route`.
"""
