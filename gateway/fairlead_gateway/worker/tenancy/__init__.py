"""The effects of a tenant on its requests: cache isolation, service class, what it is shown.

- `tenant_policy`: a tenant as requests read it, the models that it may use, and the stage that
  isolates a parsed request.
"""
