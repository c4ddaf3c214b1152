"""Engines that hang: gateways report them, the operator marks and restarts their pods.

- `gateway_reports`: reads `/api/fleet` of every ready gateway.
- `pod_verdicts`: the verdict about each pod, from the reports on its instances (pure).
- `restart_plan`: which pods to mark, and which to delete (pure).
- `engine_restarter`: the loop that reads, plans and writes.
"""
