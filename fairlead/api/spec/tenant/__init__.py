"""The `spec` of a ModelTenant.

- `spec`: keys, limits and the budget; conversion to a `fairlead.tenants.model.Tenant`.
"""
