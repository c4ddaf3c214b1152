"""The API keys and tenants of a gateway, from files and from the cluster.

- `access_service`: sends workers what changed.
- `tenant_file`: keys, tenants and revoked keys of files.
- `key_list`, `tenant_list`: the content of a keys file and of a tenants file; `digest_list`: files
  that list names with digests.
- `tenant_watch`: tenants and revoked keys of the cluster.
"""
