"""Requests that clients may send again under an `Idempotency-Key`.

- `answer_table`: the answers of a worker by caller and key, with their bounds.
- `messages`, `supervisor`: the gateways among which each key has an owner.
- `worker`: serves requests with a key, at the worker that owns it.

Source: docs/decisions/0084.
"""
