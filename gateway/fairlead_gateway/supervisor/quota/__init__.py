"""The limits of tenants in the supervisor: between its workers and the store.

- `quota_service`: collects what workers need, exchanges it with the store, and sends them grants.
- `limit_stores`: the store, and the one of a gateway without Redis; `redis_limit_store`: in Redis.
- `checkpoint_files`: durable copies of what was granted.
- `budget_watch`: the used share of budgets, and its events (pure).
- `quota_status`: warnings, and the state of limits for the management API and metrics.
"""
