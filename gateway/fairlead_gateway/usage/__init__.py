"""The ledger of a gateway: what requests used, and when replicas existed.

- `engine_time`: the engine time that a request took. Pure.
- `supervisor`: receives rows of workers, prices, writes and reads them.

`supervisor` is loaded only by gateways with FAIRLEAD_USAGE_DIR.
"""
