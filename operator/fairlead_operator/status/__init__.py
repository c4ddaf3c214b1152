"""The state of a model as reported to users. Pure.

- `pool_status`: instance counts per pool.
- `pod_requirements`: what a pool's pods need before they get a node.
- `diagnosis`: why instances do not start.
- `model_status`: `ModelDeployment.status` with its conditions.
- `route_status`, `adapter_status`: the same of a route and an adapter; `applied_status`: shared.
- `events`: Kubernetes Events about changes.
"""
