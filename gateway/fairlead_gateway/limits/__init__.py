"""Limits of tenants over all gateways: slices of each window are leased to workers in advance.

- `messages`: between supervisor and workers.
- `exchange`: what gateways and the store send each other, and calendar windows in UTC.
- `store`: the transition of the store, in Python; `redis_script`: the same as one Lua script.
- `ledger`: a tenant's limits in one gateway, which repairs a store that lost its state.
- `budget_watch`: the used share of budgets, and its events.
- `worker`: reserves and settles requests; `supervisor`: exchanges slices with the store.

Its modules are pure. The store's time is that of Redis; workers use their monotonic clock.
"""
