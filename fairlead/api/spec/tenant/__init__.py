"""The `spec` of a ModelTenant.

- `spec`: the whole, and its conversion to a `fairlead.tenants.model.Tenant`.
- `credentials`: keys and bearer tokens. `limits`: limits and the budget.
- `model_names`: how models are named.
"""
