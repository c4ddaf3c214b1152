"""Room 3, prompt: what of a request decides where its cached work lies.

That is the raw JSON text of the messages (or prompt, or input) as the client wrote it, cut into a chain of keyed hashes; the
chain starts from everything else that decides what an engine caches: model, cache salt, tools, response format.
"""

from typing import Final

import msgspec
import xxhash

from fairlead_gateway.http.request_head import RequestHead
from fairlead_gateway.routing import RouteRequest, prefix_chain
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.openai.schemas import (
    ChatRequest,
    CommonFields,
    CompletionRequest,
    EmbeddingRequest,
    GenerationFields,
)

_MAX_SESSION_CHARACTERS: Final = 256
_NO_TOOLS: Final = (b"null", b"[]")


def build_route_request(request: ModelRequest, head: RequestHead, request_id: str, secret: bytes) -> RouteRequest:
    """The request as routing sees it."""
    text, start, end = request.client_body, request.messages_start, request.messages_end
    if end == 0:
        text = (
            _prompt_text(request.fields)
            if not request.is_passthrough
            else request.body or (request.target or "").encode()
        )
        end = len(text)
    chain = prefix_chain(text, secret=secret, seed=_chain_seed(request), start=start, end=end)
    session = _session_id(request, head)
    pin = (
        None
        if session is None or not _is_one_conversation(request, head)
        else session_hash(session, request.model_key, secret)
    )
    return RouteRequest(request_id, chain, (end - start) / BYTES_PER_TOKEN, request.max_tokens, session, None, pin)


def session_hash(session: str, key: str, secret: bytes) -> int:
    """What stands for a conversation of the model ``key`` between gateways: without the secret it says nothing of it."""
    return xxhash.xxh3_64_intdigest(session.encode(), xxhash.xxh3_64_intdigest(key.encode() + secret))


def _prompt_text(parsed: CommonFields) -> bytes:
    """The text between the outermost brackets or quotes of the prompt."""
    if isinstance(parsed, ChatRequest):
        return bytes(parsed.messages)[1:-1]
    if isinstance(parsed, CompletionRequest):
        return bytes(parsed.prompt)[1:-1]
    if isinstance(parsed, EmbeddingRequest):
        return bytes(parsed.input)[1:-1]
    return b""


def _chain_seed(request: ModelRequest) -> bytes:
    """Equal seeds: equal prompts are cached alike. Parts are hashed, so that no part can pretend to be another."""
    key = request.model_key.encode()
    if not request.has_cache_variants:
        return key
    parts = [key]
    parsed = request.fields
    if parsed.cache_salt:
        parts.append(b"salt" + parsed.cache_salt.encode())
    if isinstance(parsed, ChatRequest) and parsed.tools is not msgspec.UNSET and bytes(parsed.tools) not in _NO_TOOLS:
        parts.append(b"tools" + bytes(parsed.tools))
    if isinstance(parsed, GenerationFields) and parsed.response_format is not msgspec.UNSET:
        parts.append(b"format" + bytes(parsed.response_format))
    if len(parts) == 1:
        return key
    return b"".join(xxhash.xxh3_64_digest(part) for part in parts)


def _session_id(request: ModelRequest, head: RequestHead) -> str | None:
    """The conversation that the client says this belongs to: a header, or a field of the body."""
    given = head.get(b"x-session-id")
    text = given.decode("latin-1") if given else request.session
    return text[:_MAX_SESSION_CHARACTERS] if text else None


def _is_one_conversation(request: ModelRequest, head: RequestHead) -> bool:
    """Whether that is one conversation. A ``user`` has many, and some clients give the same one with every request."""
    return bool(head.get(b"x-session-id") or request.fields.session_id)
