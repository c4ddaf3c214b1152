"""The `spec` of each kind; that of a ModelDeployment has one module per section.

- `model_source`: the weights. `engine`, `environment`: the program that serves them.
- `pools`: the replicas. `slo`: their latency targets.
- `routing`, `kv_cache`, `adapters`: how requests are served.
- `autoscaling`, `rollout`: how replicas come and go.
- `accelerator_class`, `profile`: the hardware, and the speed of an engine on it.
- `tenant/`: the teams and applications that call models. `route/`, `adapter/`: further names that
  clients call.
"""
