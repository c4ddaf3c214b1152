"""The fleet: everything that gateways can route to, as immutable data, and the sources of it.

- `model`: `Fleet`, `Model`, `Instance`.
- `file/`: a fleet file, for local mode and gateways without a cluster. `file_source` watches it.
- `kubernetes/`: a fleet watched in a cluster.
- `labels`: labels and annotations that operator and gateways agree on.
- `engine_url`, `signals`: parts of an instance. `endpoint_address`: which ones are allowed;
  `endpoint_resolver`: lookups of their names.
- `hung_engines`: the verdict whether an engine hangs, from the reports of gateways.
- `cli_options`: `--fleet` and `--kube`.
"""
