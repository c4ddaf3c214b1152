"""The fleet of a cluster, for gateway supervisors and indexers.

- `spec_cache`: parses the custom resources.
- `pod_instances`: pods to instances (pure).
- `claimant_objects`: parses other objects with names, routes and LoRA adapters.
- `builder`: parsed specs and pods to a fleet (pure).
- `source`: watches the cluster; `options` opens it from `--kube`.

Gateway workers do not import it: they need neither an HTTP client nor pydantic.
"""
