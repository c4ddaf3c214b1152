"""The tenant of a request in a worker.

- `api_keys`: finds the caller of a request by its key.
- `tenant_policy`: a tenant as requests read it, the models that it may use, and the stage that
  isolates a parsed request: cache isolation, service class, what it is shown.
"""
