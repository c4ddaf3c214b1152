"""The ledger of a gateway: what requests used, and when replicas existed.

- `pricing`: rows of workers to usage records (pure).
- `ledger_writer`: appends to the files of `fairlead.usage.ledger_files`.
- `tenant_counters`: the tenants that have metrics of their own.
- `usage_service`: receives, writes and reads; it owns all of these.
- `api`: its route of the management API.

It is loaded only by gateways with FAIRLEAD_USAGE_DIR.
"""
