"""ModelTenants as the command line reads and writes them, and ``fairlead tenants``.

- `store`: the interface of what holds the tenants.
- `cluster_store`, `file_store`: the tenants of a cluster, and those of a YAML file.
- `selection`: chooses the store by the command's options.
- `budget_use`: used budgets, and when keys were used last, by the gateways.
- `command`: the verbs ``fairlead tenants``.
"""
