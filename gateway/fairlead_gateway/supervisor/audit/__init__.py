"""Audit of a gateway: what changed in its tenants and models, and who read what of them.

- `tenant_changes`, `model_changes`: audit events of two states. Pure.
- `access_audit`: audit events of requests to the management API; repeated reads are counted.
- `token_watcher`: follows the file of management tokens.
- `audit_service`: follows the gateway's states and writes the events.
"""
