"""``fairlead keys``: creates, lists, rotates and revokes the API keys of tenants.

- `api_key`: new keys, their digests and their expiry.
- `key_entries`: changes of a tenant's list of keys.
- `command`: the verb.
- `text_output`: the table of keys.

The keys are part of ModelTenants, which `fairlead_cli.tenants` reads and writes.
"""
