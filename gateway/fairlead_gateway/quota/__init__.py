"""Limits of tenants over all gateways: slices of each window are leased to workers in advance.

- `window`: calendar windows in UTC.
- `exchange`: what gateways and the store send each other.
- `store`: the transition of the store, in Python; `redis_script`: the same as one Lua script.
- `slices`: a worker's slices, from which requests are admitted.
- `remembered`: what a gateway has seen of the store, which repairs a store that lost its state.
- `checkpoint`: the durable copy of granted amounts.

Everything here is pure. The store's time is that of Redis; workers use their monotonic clock.
"""
