"""Remote prefill: one engine computes the prompt, another one generates the response.

- `handoff_record`: how a request came to its two engines, for the decision log. Pure.
- `worker`: the calls to both engines.

`routing.prefill_placement` chooses where a prompt is computed.
"""
