"""Sizing: the number of replicas of each pool, from workload and performance.

- `group_sizer`: one group of pools, through the following steps.
- `group_inputs`: capacities, bounds and targets of the group, by `pool_capacity`.
- `group_demand`: what the group needs, by `replicas_needed` and `load_conditions`.
- `stabilization_window`: the highest demand of the last minutes holds.
- `allocation_policy`: demand divided among pools, by `pool_allocation` and `mix_requests`.
- `replica_count`: the number of one pool.
"""
