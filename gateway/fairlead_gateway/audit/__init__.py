"""Audit of a gateway: what changed in its tenants and models, and who read what of them.

- `tenant_changes`: audit events of two states of tenants or models. Pure.
- `supervisor`: follows the gateway's states, its management tokens and the requests to the
  management API, and writes the events.
"""
