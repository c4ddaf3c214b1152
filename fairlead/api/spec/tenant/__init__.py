"""The `spec` of a ModelTenant.

- `spec`: the whole, with limits and the budget; conversion to a `fairlead.tenants.model.Tenant`.
- `credentials`: keys and bearer tokens.
"""
