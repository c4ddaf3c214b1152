"""Simulated gateways: the production routing core in front of a simulated fleet.

- ``single_gateway``: one router that sees all traffic
- ``admission_gate``: the same behind the gateway's admission
- ``late_binding``: requests that wait for their chosen engine
- ``gateway_cluster``: several gateways that share what they know
"""
