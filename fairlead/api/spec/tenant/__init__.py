"""The `spec` of a ModelTenant.

- `spec`: the whole, with keys, limits and the budget; conversion to a `fairlead.tenants.model.Tenant`.
"""
