"""The placement of LoRA adapters: pure functions, which return a choice and its reason.

- `placement`: the homes of an adapter, the instances that may take a request, and what is evicted.
- `demand`: what adapters are worth: their request rates and load times.
- `adapter_replicas`: the instances that keep an adapter loaded.
- `metric_series`: the adapters that have metrics of their own.
"""
