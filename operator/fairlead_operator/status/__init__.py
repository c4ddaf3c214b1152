"""The state of a model as reported to users. Pure.

- `pool_status`: instance counts per pool.
- `pod_requirements`: what a pool's pods need before they get a node.
- `diagnosis`: why instances do not start.
- `model_status`: `ModelDeployment.status` with its conditions.
- `events`: Kubernetes Events about changes.
"""
