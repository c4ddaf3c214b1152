"""The ledger of a gateway: what requests used, and when replicas existed.

- `usage_service`: receives rows of workers, prices, writes and reads them.

It is loaded only by gateways with FAIRLEAD_USAGE_DIR.
"""
