"""Limits of tenants in a worker: each request reserves before it starts and settles when it ends.

- `limit_plan`: leased limits with their slices, those of one key and model, and reservations.
- `tenant_limits`: the leased limits of one tenant, and which apply to a key and a model.
- `amounts`: what a request probably uses, and what it has used.
- `limit_gate`: reserves, lets requests wait for slices, settles, and refuses.
- `quota_reporter`: messages to and from the supervisor.
"""
