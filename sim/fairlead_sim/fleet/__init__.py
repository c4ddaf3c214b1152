"""The fleet simulator: simulated engines and requests on a virtual clock.

- ``simulation``: the event loop, with ``fleet_options`` as its input
- ``request``: a request in flight, and its result
- ``router_front``: the interface of a router (a gateway, a cluster, an outside tool)
- ``fleet_events``: losses, joins, drains and slowdowns of engines
- ``packet_simulator``: messages that are lost, duplicated or late
- ``results``, ``goodput``: the metrics of a run
"""
