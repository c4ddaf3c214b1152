"""Limits: corrections of the planned numbers across pools.

- `prefill_decode_ratio`: engines divided between prefill and decode.
- `shared_replica_limit`: the most replicas of all pools together.
- `sleep_tier`: replicas that sleep instead of being removed.
- `ejected_replicas`: replacements of replicas that answer no gateway.
"""
