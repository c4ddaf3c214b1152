"""Remote prefill: one engine computes the prompt, another one generates the response.

- `prefill_coordinator`: the two calls, and what happens when one fails.
- `kv_connectors`: the fields that each kind of KV transfer needs.
"""
