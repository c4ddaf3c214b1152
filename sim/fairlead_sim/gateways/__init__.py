"""Simulated gateways: the production routing core in front of a simulated fleet.

- ``single_gateway``: one router that sees all traffic
- ``admission_gate``: the same behind the gateway's admission
- ``stream_balance``: the same with moves of running streams, which ``move_planner`` plans
- ``late_binding``: requests that wait for their chosen engine
- ``gateway_cluster``: several gateways that share what they know
"""
