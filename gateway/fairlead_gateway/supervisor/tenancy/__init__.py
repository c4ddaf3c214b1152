"""The API keys and tenants of a gateway, from files and from the cluster.

- `access_service`: sends workers what changed.
- `tenant_file`: keys, tenants and revoked keys of files.
- `tenant_watch`: tenants and revoked keys of the cluster.
"""
