"""Limits of tenants in a worker: each request reserves before it starts and settles when it ends.

- `tenant_limits`: the leased limits of one tenant, and which apply to a key and a model.
- `amounts`, `generated_tokens`: what a request probably uses, and what it has used.
- `reservation`: what one request has reserved.
- `limit_gate`: reserves, lets requests wait for slices, and settles.
- `refusals`: errors and headers for clients.
- `quota_reporter`: messages to and from the supervisor.
"""
