"""API keys and tenants: who may call a gateway, and what being a tenant does to a request.

- `cache_isolation`: models whose engines cannot keep caches of tenants apart. Pure.
- `messages`: keys and tenants, as workers get them, and the use of keys.
- `supervisor`: reads keys and tenants from files and from the cluster.
- `worker`: finds the tenant of a request, and applies its rules.

`fairlead.tenants` has the types; `limits` has the limits of tenants.
"""
