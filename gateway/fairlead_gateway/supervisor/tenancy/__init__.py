"""The API keys and tenants of a gateway, from files and from the cluster.

- `access_service`: sends workers what changed.
- `key_file`: keys by name.
- `revocation_file`, `revocation_watch`: keys that are refused whatever else says.
- `tenant_file`, `tenant_watch`: tenants of a file, and of the cluster.
- `followed_objects`: the informer of both watches.
"""
