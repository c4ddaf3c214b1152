"""Requests with an `Idempotency-Key`, in the worker that serves them.

- `keyed_requests`: joins a request to the answer of an equal one, or starts it.
- `answer_recording`: what writes an answer into the table, and what reads it for a client.
- `owner_forwarding`: carries a request to the worker that owns its key.
"""
