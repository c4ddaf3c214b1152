"""The use of requests, from which the supervisor makes usage records."""

import msgspec


class UsageRow(msgspec.Struct, array_like=True, gc=False):
    """The use of one request that was sent to an instance or was about to be.

    - ended_wall: Unix seconds of the end.
    - tenant, key: empty for a gateway without API keys.
    - prefill_instance: where another instance computed the prompt; else empty.
    - is_estimated: the engine reported no tokens.
    - adapter: the LoRA adapter of `model`; empty for the model itself.
    - dialect: of the request, as in the table of dialects.
    """

    id: str
    ended_wall: float
    tenant: str
    key: str
    tier: str
    model: str
    instance: str
    pool: str
    prefill_instance: str
    status: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    is_estimated: bool
    adapter: str = ""
    dialect: str = ""
