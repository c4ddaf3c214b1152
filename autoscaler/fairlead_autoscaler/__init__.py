"""The autoscaler: sizes the pools of all models so that their latency targets hold at the lowest
cost.

- `collector/`: observations from the metrics of all gateways.
- `core/`: the pure scaling core.
- `mix/`: the cheapest mix of accelerators.
- `scaling_policy`, `scale_down_order`: the model's policy, and the replicas to remove first.
- `control_loop`: one tick of all models; `history/`: their records, and replays.
- `target`: the interface to what is scaled; `kubernetes/`, `local/`: its implementations.
- `http/`: probes, metrics and decisions; `service`: the whole process.
"""
