"""Token counts and errors in the responses of engines.

Dialects count in forms of their own:

    {"usage": {"prompt_tokens", "completion_tokens", "prompt_tokens_details": {"cached_tokens"}}}
        chats, completions, embeddings and scores
    {"usage": {"total_tokens"}}
        rankings of earlier vLLM, Jina and others
    {"usage": {"input_tokens", "input_tokens_details": {"cached_tokens"}, "output_tokens"}}
        responses; in streams under `response` of the last event
    {"usage": {"input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
               "output_tokens"}}
        messages; in streams under `message` of the first event, and in `message_delta`.
        The parts of the prompt add up, and the numbers of events do not

Engines, and what stands before them, send errors in these forms:

    {"error": {"message", "type", "param", "code"}}              OpenAI, vLLM, llama.cpp
    {"type": "error", "error": {"type", "message"}}              Anthropic
    {"object": "error", "message", "type", "param", "code"}      SGLang, earlier vLLM
    {"error": "text"}, {"message": "text"}                       TGI, Triton
    {"detail": "text"}, {"detail": [{"loc", "msg"}, ...]}        FastAPI
    text                                                         proxies

Pages of HTML have no words for a client: a proxy wrote them for people.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from fairlead_gateway.native import ScannedUsage
from fairlead_gateway.upstream.response_schemas import (
    NAMED_USAGE_DECODER,
    USAGE_DECODER,
    UsageFields,
)

_MAX_TEXT: Final = 4_096
_MAX_ITEMS: Final = 8
_MAX_DEPTH: Final = 4
_TEXT_FIELDS: Final = ("message", "msg", "error", "detail", "errors", "title")
_TEXT_MEMBER: Final = re.compile(rb'"(?:message|msg|error|detail|title)"\s*:\s*("(?:[^"\\]|\\.)+")')
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
_USAGE_KEY: Final = b'"usage"'
_ACCOUNT_NAMES: Final = re.compile(
    rb'\b(?:org|proj|acct|user|team|sk|pk|key|gsk|hf|xai)[-_][A-Za-z0-9_-]{6,}|\b(?:AIza|AKIA)[\w-]{8,}|https?:(?:\\?/){2}[^\s"\\<>]*(?:\\/[^\s"\\<>]*){0,64}',
    re.IGNORECASE,
)
"""Names of accounts and keys, and addresses."""
MAX_HIDDEN_BYTES: Final = 65_536
"""Limit: an error in which names of accounts are looked for; of a longer one nothing is shown."""
_MAX_LINE_BYTES: Final = 65_536
_TAIL_BYTES: Final = 4_096
"""The end of a long part that is kept; no object of token counts is longer."""
_USAGE_OBJECT: Final = re.compile(
    rb'"usage"[ \t\r\n]{0,8}:[ \t\r\n]{0,8}(\{[^{}]{0,512}(?:\{[^{}]{0,256}\}[^{}]{0,256}){0,6}\})'
)
_DEAD_ENGINE: Final = "EngineCore encountered an issue"
"""The text of a dead vLLM. In streams, releases 0.8 to 0.11 give it the code 400."""
_FULL_ENGINE: Final = ("The request queue is full.", "The request is aborted by a higher priority request.")
"""The texts of a full SGLang, which mean 503. For responses it sends them without a code, or with
the status 400.
"""
_FULL_PREFIX: Final = "503: "
GARBAGE: Final = "garbage"
"""The cause of a response that cannot be read, as docs/reference/errors.md lists it."""
EMPTY: Final = "empty"
_MAX_TOKENS: Final = 1 << 31  # more than the largest `n` times the largest `max_tokens`

_FAILED_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"(?:abort|error|cancelled|timeout)"')
"""Ends that no model and no client has chosen: of vLLM and SGLang, the last two of TensorRT-LLM."""


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
    is_charged: the request is at fault, so what was computed is charged.
    """

    status: int
    message: str
    cause: str = ""
    is_charged: bool = False


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


class TokenCounts:
    """Token counts of an answer, or of a part of one; None where the engine reported none.

    Counts of later parts are those of the whole answer by then, so the largest hold.
    """

    __slots__ = ("cached", "output", "prompt")

    def __init__(self) -> None:
        self.prompt: int | None = None
        self.output: int | None = None
        self.cached: int | None = None

    def add_object(self, prompt: int | None, output: int | None, cached: int | None) -> None:
        """Adds one of the objects with counts in a text; the largest hold.

        If they differ, the cached tokens are unknown, since they make a prompt cheaper: any but one
        of the objects can be the client's.
        """
        if prompt is None:
            self.cached = cached if self.prompt is None else self.cached
        elif self.prompt is None:
            self.prompt, self.cached = prompt, cached
        elif prompt != self.prompt or cached != self.cached:
            self.prompt, self.cached = max(prompt, self.prompt), None
        self.output = _larger(self.output, output)

    def add_event(self, usage: msgspec.Raw | msgspec.UnsetType) -> None:
        """Adds the counts of an event, which is read whole."""
        if usage is msgspec.UNSET:
            return
        found = TokenCounts()
        _add_counts(bytes(usage), found)
        self.prompt = _larger(self.prompt, found.prompt)
        self.output = _larger(self.output, found.output)
        self.cached = _larger(self.cached, found.cached)

    def usage(self, *, is_final: bool) -> Usage | None:
        """Returns the counts; None if the engine has reported none.

        is_final: the answer is whole. Before, its output is unknown: the first event says 0 or 1.
        """
        if self.prompt is None and self.output is None:
            return None
        return Usage(self.prompt, self.output if is_final else None, self.cached)


def _larger(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return second if first is None else first
    return max(first, second)


def usage_of_named(raw: msgspec.Raw | msgspec.UnsetType) -> Usage | None:
    """Returns the counts of a whole answer in a dialect whose events have names."""
    counts = TokenCounts()
    counts.add_event(raw)
    return counts.usage(is_final=True)


class LongAnswerCounts:
    """The token counts of a plain answer that is too long to be decoded, read as it passes.

    All counts in it are looked for, and the largest hold.

    Why the largest: engines repeat fields of the request in their answers. So a client can write
    counts into a long answer, before or behind those of the engine.
    """

    __slots__ = ("_counts", "_part")

    def __init__(self) -> None:
        self._part = bytearray()
        self._counts = TokenCounts()

    def add(self, chunks: list[bytes], *, is_last: bool) -> None:
        """Reads parts of the answer, as the network has cut them; only the tail is kept."""
        part = self._part
        for chunk in chunks:
            part += chunk
            if len(part) > _MAX_LINE_BYTES:
                _find_counts(bytes(part), self._counts)
                del part[:-_TAIL_BYTES]
        if is_last:
            _find_counts(bytes(part), self._counts)
            part.clear()

    @property
    def usage(self) -> Usage | None:
        """The counts by now; None if the engine has reported none."""
        return self._counts.usage(is_final=True)


def counts_of_long_answer(body: bytes) -> Usage | None:
    """Returns the token counts of a whole plain answer that is too long to be decoded."""
    counts = LongAnswerCounts()
    counts.add([body], is_last=True)
    return counts.usage


def _find_counts(text: bytes, counts: TokenCounts) -> None:
    """Adds all counts in a part of an answer."""
    at, last = -1, b""
    while (at := text.find(_USAGE_KEY, at + 1)) >= 0:
        match = _USAGE_OBJECT.match(text, at)
        if match is not None and match[1] != last:  # a client may repeat the same one very often
            last = match[1]
            _add_counts(last, counts, has_total=True)


def _add_counts(raw: bytes, counts: TokenCounts, *, has_total: bool = False) -> None:
    """Adds the counts of one object. The parts of a prompt add up.

    has_total: a total without any other count is that of the prompt.
    """
    try:
        fields = NAMED_USAGE_DECODER.decode(raw)
    except _DECODE_ERRORS:
        return
    prompt = _valid_count(fields.prompt_tokens if fields.input_tokens is None else fields.input_tokens)
    output = _valid_count(fields.completion_tokens if fields.output_tokens is None else fields.output_tokens)
    if has_total and prompt is None and not output:
        prompt = _valid_count(fields.total_tokens)
    read, created = _valid_count(fields.cache_read_input_tokens), _valid_count(fields.cache_creation_input_tokens)
    details = fields.input_tokens_details or fields.prompt_tokens_details
    cached = read if details is None else _valid_count(details.cached_tokens)
    counts.add_object(None if prompt is None else prompt + (read or 0) + (created or 0), output, cached)


def _valid_count(count: int | None) -> int | None:
    return count if count is not None and 0 <= count <= _MAX_TOKENS else None


def engine_words(body: bytes) -> EngineWords:
    """Returns the words of an error, in whatever form it is."""
    try:
        decoded = msgspec.json.decode(body)
    except _DECODE_ERRORS:
        return EngineWords(_plain_text(body) or _first_text(body))
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
    if message in _FULL_ENGINE:
        return InBandError(503, message)
    if not isinstance(decoded, dict):
        return InBandError(status, message)
    fields = _error_fields(decoded)
    code, kind = fields.get("code"), fields.get("type")
    if isinstance(code, str) and len(code) == 3 and code.isascii() and code.isdigit():
        code = int(code)
    if isinstance(code, int) and 400 <= code <= 599:
        status = 500 if message.startswith(_DEAD_ENGINE) else code
    else:
        status = next((_STATUSES[name] for name in (kind, code) if isinstance(name, str) and name in _STATUSES), status)
    return InBandError(status, message)


def refusal_status(status: int, body: bytes) -> int:
    """Returns the status that an engine means with an error status: 503 if it is full."""
    if status != 400 or _FULL_PREFIX.encode() not in body:
        return status
    message = engine_words(body).message
    return 503 if message.startswith(_FULL_PREFIX) and message[len(_FULL_PREFIX) :] in _FULL_ENGINE else status


def _error_fields(decoded: dict[str, Any]) -> dict[str, Any]:
    inner = decoded.get("error")
    return inner if isinstance(inner, dict) else decoded


def _plain_text(body: bytes) -> str:
    """Returns a body that is no JSON as text; empty for binary data and pages."""
    try:
        text = body.decode().strip()
    except UnicodeDecodeError:
        return ""
    return "" if text.startswith(("<", "{", "[")) or not text.isprintable() else text[:_MAX_TEXT]


def _first_text(body: bytes) -> str:
    """Returns the first text for people in the start of an object, such as one that repeats the
    request.
    """
    found = _TEXT_MEMBER.search(body, 0, _MAX_LINE_BYTES) if body.startswith((b"{", b"[")) else None
    try:
        return "" if found is None else str(msgspec.json.decode(found[1]))[:_MAX_TEXT]
    except _DECODE_ERRORS:
        return ""


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


def has_failed_finish(data: bytes) -> bool:
    return _FAILED_FINISH.search(data) is not None


def hide_accounts(text: bytes) -> bytes:
    return _ACCOUNT_NAMES.sub(b"(hidden)", text)
