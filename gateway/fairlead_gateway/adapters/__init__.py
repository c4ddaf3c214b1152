"""LoRA adapters: which instance has which adapter loaded.

- `placement`: the homes of an adapter, its replicas, and what is evicted for it. Pure.
- `metric_series`: the adapters that have metrics of their own. Pure.
- `worker`: loads adapters of engines, while the requests for them wait.
"""
