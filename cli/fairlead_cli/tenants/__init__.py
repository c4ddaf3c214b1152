"""ModelTenants as the command line reads and writes them, and ``fairlead tenants``.

- `store`: the interface of what holds the tenants.
- `cluster_store`, `file_store`: the tenants of a cluster, and those of a YAML file.
- `revocation_list`: the revoked keys of a cluster, which count above its tenants.
- `yaml_edit`: changes a list of keys in a YAML text, and nothing else.
- `selection`: chooses the store by the command's options.
- `key_use`: when keys were used last, by the gateways.
- `command`, `text_output`: the verbs ``fairlead tenants``.
"""
