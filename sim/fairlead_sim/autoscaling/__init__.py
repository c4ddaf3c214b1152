"""The autoscaler in a closed loop with a simulated plant.

- ``scenarios``: each kind of load and fault, from ``traffic`` and ``reference_pools``
- ``plant``: the gateway and the pools; ``pool`` has the lives of replicas
- ``plant_engine``: the interface of one replica, in closed form or token by token; both write
  into a ``request_table``
- ``fleet_plant``: another plant, made of the fleet simulator; caches, and the gateway's own router
- ``closed_loop``: a controller runs a plant
- ``offline_optimum``: the cheapest schedule with knowledge of the future
- ``unservable_requests``: what no start could have served
- ``routing``: the gateway's rules for prefill placement, accelerators and replicas
"""
