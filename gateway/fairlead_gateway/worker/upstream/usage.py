"""Token counts and errors in the responses of engines.

Engines, and what stands before them, send errors in these forms:

    {"error": {"message", "type", "param", "code"}}              OpenAI, vLLM, llama.cpp
    {"type": "error", "error": {"type", "message"}}              Anthropic
    {"object": "error", "message", "type", "param", "code"}      SGLang, earlier vLLM
    {"error": "text"}, {"message": "text"}                       TGI, Triton
    {"detail": "text"}, {"detail": [{"loc", "msg"}, ...]}        FastAPI
    text                                                         proxies

Pages of HTML have no words for a client: a proxy wrote them for people.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from fairlead_gateway.native import ScannedUsage
from fairlead_gateway.worker.upstream.response_schemas import USAGE_DECODER, UsageFields

_MAX_TEXT: Final = 4_096
_MAX_ITEMS: Final = 8
_MAX_DEPTH: Final = 4
_TEXT_FIELDS: Final = ("message", "msg", "error", "detail", "errors", "title")
_NO_ERRORS: Final = (b"null", b'""', b"{}", b"[]", b"false")
_ERROR_KIND: Final = b'"error"'
_DECODE_USAGE: Final = USAGE_DECODER.decode
_DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_STATUSES: Final = {
    "invalid_request_error": 400,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "overloaded_error": 529,
}
"""The statuses of types that OpenAI and Anthropic define, for errors without one."""
_DEAD_ENGINE: Final = "EngineCore encountered an issue"
"""The text of a dead vLLM. In streams, releases 0.8 to 0.11 give it the code 400."""
_MAX_TOKENS: Final = 1 << 31  # more than the largest `n` times the largest `max_tokens`


class Usage:
    """Token counts of an engine; None where it reported none.

    cached_tokens: of the prompt, found in the engine's cache.
    """

    __slots__ = ("cached_tokens", "completion_tokens", "prompt_tokens")

    def __init__(self, prompt_tokens: int | None, completion_tokens: int | None, cached_tokens: int | None) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens


@dataclass(slots=True)
class InBandError:
    """An error in an engine's stream or body.

    status: the HTTP status that the engine means.
    cause: the gateway's own verdict in one word; empty for an error that the engine reports.
    """

    status: int
    message: str
    cause: str = ""


@dataclass(slots=True)
class EngineWords:
    """The words of an engine on an error. A text is empty if the engine gives none."""

    message: str = ""
    type: str = ""
    param: str = ""
    code: str = ""


def parse_usage(fields: UsageFields | None) -> Usage | None:
    """Returns the counts of an engine; impossible ones become None."""
    if fields is None:
        return None
    details = fields.prompt_tokens_details
    cached = _valid_count(details.cached_tokens) if details is not None else None
    return Usage(_valid_count(fields.prompt_tokens), _valid_count(fields.completion_tokens), cached)


def read_usage(raw: msgspec.Raw | msgspec.UnsetType) -> Usage | None:
    """Like `parse_usage`, for the member of an event or a body; None if it has another shape."""
    if raw is msgspec.UNSET:
        return None
    try:
        return parse_usage(_DECODE_USAGE(raw))
    except msgspec.DecodeError:
        return None


def scanned_usage(found: ScannedUsage) -> Usage | None:
    """Like `parse_usage`, for what a scanner found in a response."""
    is_present, prompt_tokens, completion_tokens, cached_tokens = found
    if not is_present:
        return None
    return Usage(_valid_count(prompt_tokens), _valid_count(completion_tokens), _valid_count(cached_tokens))


def _valid_count(count: int | None) -> int | None:
    return count if count is not None and 0 <= count <= _MAX_TOKENS else None


def engine_words(body: bytes) -> EngineWords:
    """Returns the words of an error, in whatever form it is."""
    try:
        decoded = msgspec.json.decode(body)
    except _DECODE_ERRORS:
        return EngineWords(_plain_text(body))
    if not isinstance(decoded, dict):
        return EngineWords(_text(decoded, _MAX_DEPTH))
    fields = _error_fields(decoded)
    names = (fields.get(name) for name in ("type", "param", "code"))
    kind, param, code = (name if isinstance(name, str) else "" for name in names)
    return EngineWords(_text(decoded, _MAX_DEPTH), kind, param, code)


def error_in(error: msgspec.Raw | msgspec.UnsetType, kind: msgspec.Raw | msgspec.UnsetType, whole: bytes) -> bytes:
    """Returns the error that an event or a body with status 200 holds; empty without one.

    error, kind: the members `error` and `object`.
    """
    if error is not msgspec.UNSET:
        found = bytes(error)
        if found not in _NO_ERRORS:
            return found
    return whole if kind is not msgspec.UNSET and bytes(kind) == _ERROR_KIND else b""


def parse_in_band_error(raw: bytes, status: int) -> InBandError:
    """Returns the status and message of an engine's error. The message is empty if it has none.

    status: used unless the error's code is an HTTP status itself, or its type means one.
    """
    try:
        decoded = msgspec.json.decode(raw)
    except _DECODE_ERRORS:
        return InBandError(status, "")
    message = _text(decoded, _MAX_DEPTH)
    if not isinstance(decoded, dict):
        return InBandError(status, message)
    fields = _error_fields(decoded)
    code, kind = fields.get("code"), fields.get("type")
    if isinstance(code, str) and len(code) == 3 and code.isascii() and code.isdigit():
        code = int(code)
    if isinstance(code, int) and 400 <= code <= 599:
        status = 500 if _DEAD_ENGINE in message else code
    elif isinstance(kind, str):
        status = _STATUSES.get(kind, status)
    return InBandError(status, message)


def _error_fields(decoded: dict[str, Any]) -> dict[str, Any]:
    """Returns the object that has type and code: the member `error`, or the whole."""
    inner = decoded.get("error")
    return inner if isinstance(inner, dict) else decoded


def _plain_text(body: bytes) -> str:
    """Returns a body that is no JSON as text; empty for binary data and pages."""
    try:
        text = body.decode().strip()
    except UnicodeDecodeError:
        return ""
    return "" if text.startswith(("<", "{", "[")) or not text.isprintable() else text[:_MAX_TEXT]


def _text(value: object, depth: int) -> str:
    """Returns the first text in a decoded error that is meant for people."""
    if isinstance(value, str):
        return value.strip()[:_MAX_TEXT]
    if depth == 0:
        return ""
    if isinstance(value, list):
        texts = (_text(item, depth - 1) for item in value[:_MAX_ITEMS])
        return "; ".join(text for text in texts if text)[:_MAX_TEXT]
    if not isinstance(value, dict):
        return ""
    for name in _TEXT_FIELDS:
        text = _text(value.get(name), depth - 1)
        if text:
            return _located(value.get("loc"), text)
    return ""


def _located(place: object, text: str) -> str:
    """Returns the text of FastAPI with the field that it is about."""
    if not isinstance(place, list):
        return text
    names = [str(name) for name in place[:_MAX_ITEMS] if name != "body"]
    return f"{'.'.join(names)}: {text}"[:_MAX_TEXT] if names else text
