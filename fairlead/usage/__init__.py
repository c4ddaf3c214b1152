"""Usage and cost of tenants: what requests used, and what replicas cost.

- `record`: the record of one request, and totals of many.
- `replica_log`: when replicas existed, as several gateways saw them.
- `report`: usage and cost by tenant, key, model, adapter, dialect and day (pure).
- `ledger_files`, `ledger_reader`, `checkpoints`: the files in which gateways keep all that.

Amounts are whole numbers: tokens, microseconds, and billionths of a US dollar.
"""
