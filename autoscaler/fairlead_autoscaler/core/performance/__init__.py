"""Performance: what a replica can carry, learned and computed.

- `replica_capacity`: step model of an engine, capacity of a replica, replicas for a load.
- `measured_slowdown`: measured slowdown against the profile.
- `startup_time`: measured startup and wake times.
- `error_budget`: missed requests of the period, and the share that may miss next.
- `decode_slack`: short prompts that decode engines could compute; shown, not used for sizing.
"""
