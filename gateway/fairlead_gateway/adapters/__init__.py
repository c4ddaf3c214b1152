"""LoRA adapters: which instance has which adapter loaded.

- `placement`: the homes of an adapter, its replicas, and what is evicted for it. Pure.
- `worker`: loads adapters of engines, while the requests for them wait.
"""
