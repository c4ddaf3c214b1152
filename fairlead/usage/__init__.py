"""Usage and cost of tenants: what requests used, and what replicas cost.

- `record`: the record of one request, and totals of many.
- `engine_time`: the engine time that a request took.
- `replica_log`: when replicas existed, as several gateways saw them.
- `report`: usage and cost by tenant, key, model, adapter and day (pure).
- `ledger_files`, `ledger_reader`, `checkpoints`: the files in which gateways keep all that.
- `focus`: a report as CSV with the columns of FOCUS.

Amounts are whole numbers: tokens, microseconds, and billionths of a US dollar.
"""
