"""The `spec` of a ModelAdapter.

- `spec`: the whole. Which engines can load it is up to `fairlead.adapters.resolution`.
"""
