"""The effects of a tenant on its requests: cache isolation, service class, what it is shown.

- `cache_salt`: keeps the KV cache of a tenant, or of a group of tenants, apart from others.
- `engine_priority`: the order in which engines start the requests of tiers.
- `tenant_policy`: a tenant as requests read it, and the stage that isolates a parsed request.
- `visible_models`: the models that a tenant may use, as a fleet of their own.
- `placement_privacy`: removes from responses what the caches of other tenants could show through.
"""
