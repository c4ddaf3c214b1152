"""The prompt as routing sees it: hashes that tell where its KV may be cached.

They are made from the raw JSON text of the messages (or prompt, or input), as a chain of keyed
hashes. The chain starts from everything else that decides what an engine caches: model, cache salt,
tools, response format, template and truncation. A prompt for whose log probabilities an engine
computes all of it has a chain of its own.
"""

from typing import Final

import msgspec
import xxhash

from fairlead_gateway.http.request_head import RequestHead
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, ChainStarts, hash_blocks
from fairlead_gateway.worker.openai.body_parser import reads_no_cache
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


def build_route_request(
    request: ModelRequest, head: RequestHead, request_id: str, chain_starts: ChainStarts
) -> RouteRequest:
    """Returns what routing needs: the prefix hashes, the size and the session of a request."""
    text, start, end = request.client_body, request.messages_start, request.messages_end
    if end == 0:
        text = (
            _prompt_text(request.fields)
            if not request.is_passthrough
            else request.body or (request.target or "").encode()
        )
        end = len(text)
    chain_start = (
        chain_starts.of_seed(_chain_seed(request, request_id))
        if request.has_cache_variants
        else chain_starts.of_model(request.model_key)
    )
    chain = hash_blocks(text, chain_start, start=start, end=end)
    session = _session_id(request, head)
    pinned_session = (
        None
        if session is None or not _is_one_conversation(request, head)
        else session_hash(session, request.model_key, chain_starts.secret)
    )
    tokens = (end - start) / BYTES_PER_TOKEN
    route_request = RouteRequest(request_id, chain, tokens, request.max_tokens, session, pinned_session)
    route_request.sequences = request.sequences
    return route_request


def session_hash(session: str, key: str, secret: bytes) -> int:
    """Returns the hash of a conversation that gateways exchange; it reveals nothing without the
    secret.

    key: the model's.
    """
    return xxhash.xxh3_64_intdigest(session.encode(), xxhash.xxh3_64_intdigest(key.encode() + secret))


def _prompt_text(fields: CommonFields) -> bytes:
    """Returns the text between the outermost brackets or quotes of the prompt."""
    if isinstance(fields, ChatRequest):
        return bytes(memoryview(fields.messages)[1:-1])
    if isinstance(fields, CompletionRequest):
        return bytes(memoryview(fields.prompt)[1:-1])
    if isinstance(fields, EmbeddingRequest):
        return bytes(memoryview(fields.input)[1:-1])
    return b""


def _chain_seed(request: ModelRequest, request_id: str) -> bytes:
    """Returns the seed of the hash chain; equal seeds mean that equal prompts share cached blocks.

    The parts are hashed one by one, so that no part can look like another.
    """
    key = request.model_key.encode()
    parts = [key]
    fields = request.fields
    if fields.cache_salt:
        parts.append(b"salt" + fields.cache_salt.encode())
    if isinstance(fields, ChatRequest) and fields.tools is not msgspec.UNSET and bytes(fields.tools) not in _NO_TOOLS:
        parts.append(b"tools" + bytes(fields.tools))
    if isinstance(fields, GenerationFields) and fields.response_format is not msgspec.UNSET:
        parts.append(b"format" + bytes(fields.response_format))
    if request.cache_variant:
        parts.append(b"fields" + request.cache_variant)
    if reads_no_cache(fields):
        parts.append(b"id" + request_id.encode())
    if len(parts) == 1:
        return key
    return b"".join(xxhash.xxh3_64_digest(part) for part in parts)


def _session_id(request: ModelRequest, head: RequestHead) -> str | None:
    """Returns the client's name for the conversation, from a header or the body."""
    header = head.get(b"x-session-id")
    text = header.decode("latin-1") if header else request.session
    return text[:_MAX_SESSION_CHARACTERS] if text else None


def _is_one_conversation(request: ModelRequest, head: RequestHead) -> bool:
    """Whether the client's name for the conversation stands for one conversation only.

    Why: a `user` has many conversations, and some clients send the same one with every request.
    """
    return request.has_session_id or bool(head.get(b"x-session-id"))
