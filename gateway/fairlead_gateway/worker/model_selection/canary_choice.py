"""The revision that serves a conversation while a rollout has a canary.

The choice is a pure function of the model, the conversation and the weight, so all gateways agree,
and nothing is stored. A weight that grows moves conversations to the canary only.
"""

from typing import Final

import xxhash

from fairlead.routes.resolution import is_drawn
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.worker.model_selection.conversation import prompt_digest, text_digest
from fairlead_gateway.worker.openai.request import ModelRequest

_SEED: Final = xxhash.xxh3_64_intdigest(b"canary")


def takes_canary(request: ModelRequest, routed: RouteRequest, weight: int) -> bool:
    """Returns whether the canary serves the conversation of a request.

    weight: percentage of the conversations that it serves.
    """
    seed = xxhash.xxh3_64_intdigest(request.model_key.encode(), _SEED)
    return is_drawn(_conversation(request, routed), seed, weight)


def _conversation(request: ModelRequest, routed: RouteRequest) -> bytes:
    if routed.session_hash is not None:
        return str(routed.session_hash).encode()
    if request.messages_end:
        return prompt_digest(request.client_body, request.messages_start, request.messages_end)
    return text_digest(None if request.is_passthrough else request.fields, request.body)
