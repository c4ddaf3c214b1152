"""Room 3, prompt: what of a request decides where its cached work lies.

That is the raw JSON text of the messages (or prompt, or input) as the client wrote it, cut into a chain of keyed hashes; the
chain starts from everything else that decides what an engine caches: model, cache salt, tools, response format.
"""

from typing import Final

import msgspec
import xxhash

from fairlead_gateway.fields import Chat, Common, Completion, Embedding, Generation
from fairlead_gateway.head import Head
from fairlead_gateway.model import Ask
from fairlead_gateway.routing import RouteRequest, prefix_chain
from fairlead_gateway.routing.prefix import BYTES_PER_TOKEN

_SESSION_CHARACTERS: Final = 256
_NO_TOOLS: Final = (b"null", b"[]")


def route_request(ask: Ask, head: Head, request_id: str, secret: bytes) -> RouteRequest:
    """The request as routing sees it."""
    text, start, end = ask.given, ask.start, ask.end
    if end == 0:
        text = _text(ask.parsed) if not ask.opaque else ask.body or (ask.target or "").encode()
        end = len(text)
    chain = prefix_chain(text, secret=secret, seed=_seed(ask), start=start, end=end)
    session = _session(ask, head)
    pin = None if session is None or not _named(ask, head) else session_pin(session, ask.key, secret)
    return RouteRequest(request_id, chain, (end - start) / BYTES_PER_TOKEN, ask.max_tokens, session, None, pin)


def session_pin(session: str, key: str, secret: bytes) -> int:
    """What stands for a conversation of the model ``key`` between gateways: without the secret it says nothing of it."""
    return xxhash.xxh3_64_intdigest(session.encode(), xxhash.xxh3_64_intdigest(key.encode() + secret))


def _text(parsed: Common) -> bytes:
    """The text between the outermost brackets or quotes of the prompt."""
    if isinstance(parsed, Chat):
        return bytes(parsed.messages)[1:-1]
    if isinstance(parsed, Completion):
        return bytes(parsed.prompt)[1:-1]
    if isinstance(parsed, Embedding):
        return bytes(parsed.input)[1:-1]
    return b""


def _seed(ask: Ask) -> bytes:
    """Equal seeds: equal prompts are cached alike. Parts are hashed, so that no part can pretend to be another."""
    key = ask.key.encode()
    if not ask.special:
        return key
    parts = [key]
    parsed = ask.parsed
    if parsed.cache_salt:
        parts.append(b"salt" + parsed.cache_salt.encode())
    if isinstance(parsed, Chat) and parsed.tools is not msgspec.UNSET and bytes(parsed.tools) not in _NO_TOOLS:
        parts.append(b"tools" + bytes(parsed.tools))
    if isinstance(parsed, Generation) and parsed.response_format is not msgspec.UNSET:
        parts.append(b"format" + bytes(parsed.response_format))
    if len(parts) == 1:
        return key
    return b"".join(xxhash.xxh3_64_digest(part) for part in parts)


def _session(ask: Ask, head: Head) -> str | None:
    """The conversation that the client says this belongs to: a header, or a field of the body."""
    given = head.get(b"x-session-id")
    text = given.decode("latin-1") if given else ask.session
    return text[:_SESSION_CHARACTERS] if text else None


def _named(ask: Ask, head: Head) -> bool:
    """Whether that is one conversation. A ``user`` has many, and some clients give the same one with every request."""
    return bool(head.get(b"x-session-id") or ask.parsed.session_id)
