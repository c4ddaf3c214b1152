"""The state of a model as reported to users. Pure.

- `pool_status`: instance counts per pool.
- `diagnosis`: why instances do not start.
- `model_status`: `ModelDeployment.status` with its conditions.
- `events`: Kubernetes Events about changes.
"""
