"""The fleet simulator as the plant of an autoscaling run: caches, and the gateway's own router.

- ``plant``: ``FleetPlant``, which runs a scenario under a controller
- ``conversations``: the requests of a load as turns of conversations, with common prefixes
- ``replica_fleet``: fleet engines as replicas of a ``Pool``, behind a router that may find the pool
  empty or full
- ``scaled_schedule``: an upper bound of the offline optimum on this plant
"""
