"""The simulated engine, the fleet simulator and the seams for outside tools.

- ``engine``: scheduler, block pool, tokenizer, KV events and metrics; no clock, no I/O
- ``server``, ``api``, ``http``, ``generation``, ``runtime``, ``kv_transfer``: that core as a
  process with vLLM's HTTP API
- ``workload``: traffic, recorded and generated
- ``fleet``, ``gateways``, ``experiments``: the fleet simulator, on a virtual clock
- ``autoscaling``: the autoscaler in a closed loop
- ``adapters``, ``seams``: protocols for outside tools
"""
