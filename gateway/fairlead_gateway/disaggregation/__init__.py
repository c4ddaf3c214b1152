"""Remote prefill: one engine computes the prompt, another one generates the response.

- `worker`: the calls to both engines.

`routing.prefill_placement` chooses where a prompt is computed.
"""
