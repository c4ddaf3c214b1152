"""The fleet simulator as the plant of an autoscaling run: caches, and the gateway's own router.

- ``plant``: ``FleetPlant``, which runs a scenario under a controller
- ``conversations``: the requests of a load as turns of conversations; ``conversation_prompts``
  gives them prompts with common prefixes
- ``holding_gateway``: the router, in front of a pool that may be empty or full
- ``replica_engine``: a fleet engine as a replica of a ``Pool``
- ``scaled_schedule``: an upper bound of the offline optimum on this plant
"""
