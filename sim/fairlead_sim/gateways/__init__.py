"""Simulated gateways: the production routing core in front of a simulated fleet.

- ``single_gateway``: one router that sees all traffic
- ``admission_gate``: the same behind the gateway's admission
- ``late_binding``: requests that wait for their chosen engine
- ``routing_options``, ``cluster_options``: the inputs of these and of a cluster
- ``gateway_cluster``: several gateways that share what they know; each is a ``simulated_gateway``,
  and engines report to a ``reported_index``
"""
