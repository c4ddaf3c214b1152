"""Token counts and errors in the responses of engines.

Two APIs that are passed on count in forms of their own:

    {"usage": {"input_tokens", "input_tokens_details": {"cached_tokens"}, "output_tokens"}}
        `/v1/responses`; in streams under `response` of the last event
    {"usage": {"input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
               "output_tokens"}}
        `/v1/messages`; in streams under `message` of the first event, and in `message_delta`.
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
    PASSED_ANSWER_DECODER,
    PASSED_USAGE_DECODER,
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
_NUMBER_KEY: Final = b'"sequence_number"'
_SEQUENCE_NUMBER: Final = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})\b')
_NUMBER_BYTES: Final = 48
_DELTA_TYPES: Final = (b'.delta"', b'"content_block_delta"')
"""The ends of the types of events with text: of `/v1/responses`, and of `/v1/messages`."""
_OPENINGS: Final = frozenset(
    {b"response.created", b"response.queued", b"response.in_progress", b"message_start", b"ping"}
)
"""The types of events that engines send before they have computed the prompt."""
_FAILED: Final = "response.failed"
_FINAL_EVENTS: Final = ("message_delta", "response.completed", "response.incomplete", _FAILED)
_ERROR_MARK: Final = re.compile(rb'^event: ?error|"type": ?"(?:error|response\.failed)"', re.MULTILINE)
_DATA_FIELD: Final = b"data:"
_EVENT_FIELD: Final = b"event:"
_MAX_LINE_BYTES: Final = 65_536
_TAIL_BYTES: Final = 4_096
"""The end of a long line that is kept; no object of token counts is longer."""
_USAGE_OBJECT: Final = re.compile(
    rb'"usage"[ \t\r\n]{0,8}:[ \t\r\n]{0,8}(\{[^{}]{0,512}(?:\{[^{}]{0,256}\}[^{}]{0,256}){0,6}\})'
)
_FIRST_TYPE: Final = re.compile(rb'data:\s{0,8}\{\s{0,8}"type"\s{0,8}:\s{0,8}"([a-z_.]{1,64})"')
_LAST_TYPE: Final = re.compile(rb'"type"\s{0,8}:\s{0,8}"([a-z_.]{1,64})"\s{0,8}\}\s{0,8}\Z')
_TYPE_BYTES: Final = 128
"""The distance from the start or the end of a long event within which its type is looked for."""
_DEAD_ENGINE: Final = "EngineCore encountered an issue"
"""The text of a dead vLLM. In streams, releases 0.8 to 0.11 give it the code 400."""
_MAX_TINY_LINES: Final = 256
_MIN_MEAN_LINE_BYTES: Final = 8  # of more lines than that at once; comments are few
GARBAGE: Final = "garbage"
"""The cause of a response that cannot be read, as docs/reference/errors.md lists it."""
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


class _Counts:
    """Token counts of an answer, or of a part of one."""

    __slots__ = ("cached", "output", "prompt")

    def __init__(self) -> None:
        self.prompt: int | None = None
        self.output: int | None = None
        self.cached: int | None = None

    def add_object(self, prompt: int | None, output: int | None, cached: int | None) -> None:
        """Adds one of the objects with counts in a part; the largest hold.

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

    def add_part(self, part: "_Counts") -> None:
        """Adds the counts of a later part; each number is that of the whole answer by then."""
        self.prompt = _larger(self.prompt, part.prompt)
        self.output = _larger(self.output, part.output)
        self.cached = _larger(self.cached, part.cached)


def _larger(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return second if first is None else first
    return max(first, second)


class PassedUsage:
    """The token counts of an answer that is too long to be decoded, or is passed on, read as it
    passes.

    A line that is longer than most answers is not decoded: all counts in it are looked for, and the
    largest hold.

    Why the largest: engines repeat fields of the request in their answers. So a client can write
    counts into a long answer, before or behind those of the engine.

    is_stream: the answer is an event stream; otherwise it is one JSON object.
    event_count: events with a part of the answer.
    has_event: the first event of the stream that does more than open the answer has come.
    has_opening: an event that opens the answer has come.
    error: that the answer reports, in an event or instead of an answer.
    """

    __slots__ = (
        "_counts",
        "_found",
        "_is_error_event",
        "_is_final",
        "_is_opening",
        "_line",
        "_line_start",
        "_numbered",
        "error",
        "event_count",
        "has_event",
        "has_opening",
        "is_stream",
    )

    def __init__(self, *, is_stream: bool) -> None:
        self.is_stream = is_stream
        self._line = bytearray()
        self._line_start = b""  # of a long line, whose counts are in `_found`
        self._found = _Counts()
        self._numbered = b""
        self._is_error_event = self._is_opening = self.has_opening = False
        self._is_final = self.has_event = not is_stream
        self._counts = _Counts()
        self.error: InBandError | None = None
        self.event_count = 0

    @property
    def usage(self) -> Usage | None:
        """The counts by now; None if the engine has reported none.

        The output is unknown until the event that ends the answer: the first one says 0 or 1.
        """
        counts = self._counts
        if counts.prompt is None and counts.output is None:
            return None
        return Usage(counts.prompt, counts.output if self._is_final else None, counts.cached)

    @property
    def next_sequence_number(self) -> int:
        """One more than the last `sequence_number` of an event; 0 without one."""
        match = _SEQUENCE_NUMBER.match(self._numbered)
        return 0 if match is None else int(match[1]) + 1

    def add(self, chunks: list[bytes], *, is_last: bool) -> None:
        """Reads parts of the answer, as the network has cut them. Nothing counts behind an error.

        Sets `error` if a read has very many lines for their bytes, since each costs a microsecond.
        """
        if self.error is not None:
            return
        if self.is_stream and _is_flood(chunks):
            self.error = InBandError(502, "the engine's stream is a flood of empty lines", GARBAGE)
            self.has_event = True
            return
        for chunk in chunks:
            if self.is_stream:
                self.event_count += sum(chunk.count(end) for end in _DELTA_TYPES)
                self._add_lines(chunk)
                if (at := chunk.rfind(_NUMBER_KEY)) >= 0:
                    self._numbered = chunk[at : at + _NUMBER_BYTES]
            else:
                self._extend(chunk)
        if is_last:
            self._end_line()

    def _add_lines(self, chunk: bytes) -> None:
        if (
            self.has_event
            and not self._line
            and not self._is_error_event
            and chunk.endswith(b"\n")
            and chunk.find(_USAGE_KEY) < 0
            and _ERROR_MARK.search(chunk) is None
        ):
            return
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._extend(chunk[start:end])
            self._end_line()
            start = end + 1
        self._extend(chunk[start:])
        if not self.has_event and self._line.find(b"\r", 0, -1) >= 0:
            self.has_event = True  # lines end with CR alone, and pass unread

    def _extend(self, part: bytes) -> None:
        """Adds a part to the current line.

        Of a line that is too long stay its start, where the type of the event is, and its tail.
        """
        line = self._line
        line += part
        if len(line) > _MAX_LINE_BYTES:
            self._line_start = self._line_start or bytes(line[:_TYPE_BYTES])
            _find_counts(bytes(line), self._found)
            del line[:-_TAIL_BYTES]

    def _end_line(self) -> None:
        line, start, found = bytes(self._line), self._line_start, self._found
        self._line.clear()
        if start:
            self.has_event = True
            self._line_start, self._found = b"", _Counts()
            _find_counts(line, found)
            # An event before the last one has no counts, except those that the client has sent.
            if not self.is_stream or _long_event_type(start, line) in _FINAL_EVENTS:
                self._count(found, is_final=True)
        elif not self.is_stream:
            self._read(line)
        elif line.startswith(_DATA_FIELD):
            self.has_opening = self.has_opening or self._is_opening
            self.has_event = self.has_event or not self._is_opening
            self._read(line[len(_DATA_FIELD) :])
            self._is_error_event = self._is_opening = False
        elif line.startswith(_EVENT_FIELD):
            kind = line[len(_EVENT_FIELD) :].strip()
            self._is_error_event, self._is_opening = kind == b"error", kind in _OPENINGS

    def _read(self, data: bytes) -> None:
        """Reads an event or a whole answer that may have a usage or an error."""
        if not self._is_error_event and data.find(_USAGE_KEY) < 0 and _ERROR_MARK.search(data) is None:
            return
        try:
            answer = PASSED_ANSWER_DECODER.decode(data.strip())
        except _DECODE_ERRORS:
            return
        failed = answer.response.error if answer.response is not None and answer.type == _FAILED else msgspec.UNSET
        if failed is not msgspec.UNSET:
            self.error = parse_in_band_error(bytes(failed), 500)
        elif self._is_error_event or answer.type == "error":
            self.error = parse_in_band_error(data, 500)
        for holder in (answer, answer.message, answer.response):
            if holder is not None and not isinstance(holder, str) and holder.usage is not msgspec.UNSET:
                counts = _Counts()
                _add_counts(bytes(holder.usage), counts)
                self._count(counts, is_final=not self.is_stream or answer.type in _FINAL_EVENTS)

    def _count(self, found: _Counts, *, is_final: bool) -> None:
        self._counts.add_part(found)
        self._is_final = self._is_final or (is_final and found.output is not None)


def _is_flood(chunks: list[bytes]) -> bool:
    """Returns whether a read has very many lines, and hardly more than these."""
    lines = sum([chunk.count(b"\n") for chunk in chunks])
    return lines > _MAX_TINY_LINES and sum(map(len, chunks)) < _MIN_MEAN_LINE_BYTES * lines


def counts_of_long_answer(body: bytes) -> Usage | None:
    """Returns the token counts of a whole plain answer that is too long to be decoded."""
    passed = PassedUsage(is_stream=False)
    passed.add([body], is_last=True)
    return passed.usage


def _long_event_type(start: bytes, end: bytes) -> str:
    """Returns the type of an event of which only start and end are known; empty if it is neither
    the first nor the last field.

    Why only there: elsewhere stand fields that the client has sent.
    """
    match = _FIRST_TYPE.match(start) or _LAST_TYPE.search(end, max(0, len(end) - _TYPE_BYTES))
    return "" if match is None else match[1].decode()


def _find_counts(text: bytes, counts: _Counts) -> None:
    """Adds all counts in a part of an answer."""
    at, last = -1, b""
    while (at := text.find(_USAGE_KEY, at + 1)) >= 0:
        match = _USAGE_OBJECT.match(text, at)
        if match is not None and match[1] != last:  # a client may repeat the same one very often
            last = match[1]
            _add_counts(last, counts)


def _add_counts(raw: bytes, counts: _Counts) -> None:
    """Adds the counts of one object. The parts of a prompt add up."""
    try:
        fields = PASSED_USAGE_DECODER.decode(raw)
    except _DECODE_ERRORS:
        return
    prompt = _valid_count(fields.prompt_tokens if fields.input_tokens is None else fields.input_tokens)
    output = _valid_count(fields.completion_tokens if fields.output_tokens is None else fields.output_tokens)
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
