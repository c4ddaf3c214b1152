"""Engines that hang: gateways report them, the operator marks and restarts their pods.

- `gateway_reports`: reads `/api/fleet` of every ready gateway.
- `restart_plan`: the verdict about each pod from the reports on its instances, and which pods to
  mark and to delete (pure).
- `engine_restarter`: the loop that reads, plans and writes.
"""
