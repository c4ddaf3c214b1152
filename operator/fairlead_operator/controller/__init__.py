"""The control loop and its pure decisions.

- `workqueue`: models to reconcile, each at most once at a time.
- `reconciler`: one pass over one model; `status_writer`: its end, the write of `status`, and the
  status of routes and adapters.
- `revisions`: which revision runs.
- `apply_plan`: what to apply and what to delete; `field_ownership`: fields of other managers.
- `group_rollout`: surge rollouts of multi-node instances; `failed_instances`: Deployments replace
  pods that have not started.
"""
