"""The ledger of a gateway: what requests used, and when replicas existed.

- `messages`: the use of one request, as workers report it.
- `engine_time`: the engine time that a request took. Pure.
- `supervisor`: receives rows of workers, prices, writes and reads them.

`supervisor` is loaded only by gateways with FAIRLEAD_USAGE_DIR.
"""
