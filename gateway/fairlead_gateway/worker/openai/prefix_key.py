"""The prompt as routing sees it: hashes that tell where its KV may be cached.

They are made from the raw JSON text of the messages (or prompt, or input), as a chain of keyed
hashes. In place of pictures and other parts stand their digests (`media_parts`). Tools and
documents of a chat come before its messages, since engines put them into the prompt. The chain
starts from everything else that decides what an engine caches: model, cache salt, response format,
template and truncation. A prompt for whose log probabilities an engine computes all of it has a
chain of its own.
"""

from typing import Any, Final

import msgspec
import xxhash

from fairlead_gateway.http.request_head import RequestHead
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.prefix.media_parts import MediaPart, find_media, without_media
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
_MAX_CACHED_STARTS: Final = 1_024


class CacheScope:
    """The requests that share cached blocks with one another, and with no others.

    salt: the cache salt that all of them have.
    """

    __slots__ = ("_starts", "salt")

    def __init__(self, salt: str) -> None:
        self.salt = salt
        self._starts: dict[str, Any] = {}

    def chain_start(self, model_key: str, chain_starts: ChainStarts) -> Any:
        """Returns the start of the scope's prefix hashes that only the model decides."""
        start = self._starts.get(model_key)
        if start is None:
            if len(self._starts) >= _MAX_CACHED_STARTS:
                self._starts.clear()
            start = self._starts[model_key] = chain_starts.of_seed(_joined([model_key.encode(), _salt_part(self.salt)]))
        return start


def build_route_request(
    request: ModelRequest,
    head: RequestHead,
    request_id: str,
    chain_starts: ChainStarts,
    scope: CacheScope | None = None,
) -> RouteRequest:
    """Returns what routing needs: the prefix hashes, the size and the session of a request.

    Parts that are not text have their nominal tokens.

    scope: of the request's tenant; None if it shares caches with all others.
    """
    text, start, end = request.client_body, request.messages_start, request.messages_end
    if end == 0:
        text = (
            prompt_text(request.fields)
            if not request.is_passthrough
            else request.body or (request.target or "").encode()
        )
        end = len(text)
    media: list[MediaPart] | None = None
    if request.decoded_fields is not None:  # else a scanned chat, which has text only
        media = find_media(text, start, end)
        if media:
            text = without_media(text, start, end, media)
            start, end = 0, len(text)
    if request.context:
        text = _with_context(request, text[start:end])
        start, end = 0, len(text)
    if request.has_cache_variants:
        chain_start = chain_starts.of_seed(_chain_seed(request, request_id))
    elif scope is not None:
        chain_start = scope.chain_start(request.cache_key, chain_starts)
    else:
        chain_start = chain_starts.of_model(request.cache_key)
    chain = hash_blocks(text, chain_start, start=start, end=end)
    session = _session_id(request, head)
    pinned_session = None
    if session is not None:
        salt = "" if scope is None else scope.salt
        if _is_one_conversation(request, head):
            pinned_session = session_hash(session, request.cache_key, chain_starts.secret, salt)
        session = salt + session
    tokens = (end - start + request.repeated_bytes) / BYTES_PER_TOKEN
    # A float, as the field's type says: compiled, an integer there costs each use 300 instructions.
    max_tokens = None if request.max_tokens is None else float(request.max_tokens)
    route_request = RouteRequest(request_id, chain, tokens, max_tokens, session, pinned_session)
    route_request.sequences = request.answers
    if media:
        route_request.media = tuple(media)
        route_request.media_tokens = float(sum([part.nominal_tokens for part in media]))
    return route_request


def _with_context(request: ModelRequest, text: bytes) -> bytes:
    """Returns a prompt with the other texts that engines put into it, which are not needed then."""
    context, request.context = b"".join(request.context), ()
    return text + context if isinstance(request.fields, CompletionRequest) else context + text


def session_hash(session: str, key: str, secret: bytes, salt: str = "") -> int:
    """Returns the hash of a conversation that gateways exchange; it reveals nothing without the
    secret.

    key: the model's.
    salt: of the cache scope.
    """
    return xxhash.xxh3_64_intdigest(session.encode(), xxhash.xxh3_64_intdigest(key.encode() + secret + salt.encode()))


def prompt_text(fields: CommonFields) -> bytes:
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
    key = request.cache_key.encode()
    parts = [key]
    fields = request.fields
    salt = request.cache_salt or fields.cache_salt
    if salt:
        parts.append(_salt_part(salt))
    if isinstance(fields, ChatRequest) and fields.tools is not msgspec.UNSET and bytes(fields.tools) not in _NO_TOOLS:
        parts.append(b"tools" + bytes(fields.tools))
    if isinstance(fields, GenerationFields) and fields.response_format is not msgspec.UNSET:
        parts.append(b"format" + bytes(fields.response_format))
    if request.cache_variant:
        parts.append(b"fields" + request.cache_variant)
    if reads_no_cache(fields):
        parts.append(b"id" + request_id.encode())
    return key if len(parts) == 1 else _joined(parts)


def _salt_part(salt: str) -> bytes:
    return b"salt" + salt.encode()


def _joined(parts: list[bytes]) -> bytes:
    return b"".join([xxhash.xxh3_64_digest(part) for part in parts])


def _session_id(request: ModelRequest, head: RequestHead) -> str | None:
    """Returns the client's name for the conversation, from a header or the body."""
    header = head.get_rare(b"x-session-id")
    text = header.decode("latin-1") if header else request.session
    return text[:_MAX_SESSION_CHARACTERS] if text else None


def _is_one_conversation(request: ModelRequest, head: RequestHead) -> bool:
    """Whether the client's name for the conversation stands for one conversation only.

    Why: a `user` has many conversations, and some clients send the same one with every request.
    """
    return request.has_session_id or bool(head.get_rare(b"x-session-id"))
