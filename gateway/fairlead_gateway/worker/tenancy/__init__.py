"""The effects of a tenant on its requests: cache isolation, service class, what it is shown.

- `tenant_policy`: a tenant as requests read it, and the stage that isolates a parsed request.
- `visible_models`: the models that a tenant may use, as a fleet of their own.
"""
