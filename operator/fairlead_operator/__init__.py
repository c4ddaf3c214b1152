"""The operator: turns ModelDeployments into running engines and reports their state.

- `manager`: watches, work queue, leader election and probes, put together.
- `controller/reconciler`: one model, from observed state to status. Its stages are
  `controller/revisions`, `render/`, `controller/apply_plan`, `kube/writer` and `status/`.
- `scale_placeholder`: the number that autoscalers read before they have written one.
- `hung_engines/`: pods whose engine answers no request.
- `kube/`: observed objects, watches and writes.
- `manager_interface`: what controllers need of the process. `health`, `http_server`, `settings`,
  `object_metadata`: shared parts.

operator/README.md describes one pass.
"""
