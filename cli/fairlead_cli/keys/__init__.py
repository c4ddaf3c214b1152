"""``fairlead keys``: creates, lists, rotates and revokes the API keys of tenants.

- `key_entries`: new keys, and changes of a tenant's list of keys.
- `command`: the verbs, and the table of keys.

The keys are part of ModelTenants, which `fairlead_cli.tenants` reads and writes.
"""
