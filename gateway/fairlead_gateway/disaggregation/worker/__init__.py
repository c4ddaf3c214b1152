"""The calls of a request whose prompt another engine computes.

- `prefill_coordinator`: the two calls, and what happens when one fails.
- `kv_connectors`: the fields that each kind of KV transfer needs.
"""
