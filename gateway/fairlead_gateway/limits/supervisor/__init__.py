"""The limits of tenants in the supervisor: between its workers and the store.

- `quota_service`: collects what workers need, exchanges it with the store, and sends them grants.
  It has the state of limits for people, too, and the store of a gateway without Redis.
- `redis_limit_store`: the store in Redis.
- `checkpoint_files`: durable copies of what was granted.
"""
