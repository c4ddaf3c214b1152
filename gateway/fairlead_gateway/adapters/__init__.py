"""The placement of LoRA adapters: pure functions, which return a choice and its reason.

- `placement`: the homes of an adapter, its replicas, and what is evicted for it.
- `metric_series`: the adapters that have metrics of their own.
"""
