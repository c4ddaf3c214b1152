"""The fleet simulator: simulated engines and requests on a virtual clock.

- ``simulation``: the event loop with its options, the interface of a router
- ``fleet_events``: engines that are lost, join, drain or become slow
- ``request``: a request in flight, and its result
- ``packet_simulator``: messages that are lost, duplicated or late
- ``results``: the metrics of a run
"""
