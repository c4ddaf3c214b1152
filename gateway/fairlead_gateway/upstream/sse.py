"""Scans event streams of engines: passes whole events, and reads the few that matter.

Events pass as the bytes that the engine sent. Only events with a usage, an error, an abort or the
end are parsed. Substring searches find them. Inside a JSON string a quote is escaped, so `"usage":`
with plain quotes is always a key.

Most events of a stream differ only in their text. An event that begins and ends as an earlier one,
with a text without quotes and brackets between, is not searched again.

Why substring searches: a stream has thousands of events.
"""

import re
from itertools import islice
from typing import Final

import msgspec

from fairlead_gateway.upstream.event_words import ERROR, FINISH, USAGE, words_of
from fairlead_gateway.upstream.response_schemas import (
    EVENT_DECODER,
    LONG_EVENT_DECODER,
    MEMBERS_DECODER,
    StreamEvent,
)
from fairlead_gateway.upstream.stream_record import TokenTap
from fairlead_gateway.upstream.usage import (
    GARBAGE,
    InBandError,
    Usage,
    error_in,
    has_failed_finish,
    parse_in_band_error,
    read_usage,
)

COMMENT: Final = b":\n\n"
"""In place of an event that is held."""
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\r")
_EMPTY_LINE: Final = b"\n\n"
_LONGEST_END: Final = 4
_ANY_EVENT: Final = re.compile(rb".*?(?:\n\n|\n\r\n|\r\r)[\r\n]*", re.DOTALL)
_LINE_ENDS: Final = b"\r\n"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_LONG_EVENT_BYTES: Final = 16_384
_MAX_LINES: Final = 4_096
"""Limit: ends of lines in one event; an event in JSON has one or two lines."""
_MAX_VALUES: Final = 131_072
"""Limit: members, objects and lists of a long event; of bare numbers, 16 count as one."""
_MAX_TINY_EVENTS: Final = 64
_MIN_MEAN_EVENT_BYTES: Final = 16  # of more events than that at once; the comments of a paused stream are few
_TEXT_STARTS: Final = (b'"content":"', b'"text":"', b'"reasoning":"', b'"reasoning_content":"')
_QUOTE: Final = ord('"')
_LINE_FEED: Final = ord("\n")  # a number is found faster than a byte, which is first tried as one
_CARRIAGE_RETURN: Final = ord("\r")
_BRACKET: Final = ord("[")
_WORDS: Final = (b"usage", b"error")
_WORD_BYTES: Final = 5
_MAX_TEMPLATE_BYTES: Final = 1_024
_FIELD: Final = re.compile(rb"[\w-]*:|data[\r\n]")
"""The start of an event: a comment, or a field. Fields that clients do not know are ignored."""
_ERROR_FIELD: Final = b"error:"
"""The field in which llama.cpp sent errors until the summer of 2025."""
_USAGE_ALONE: Final = b',"choices":[],"usage":{'
_NEXT_MEMBER: Final = b'},"'
_END: Final = b"[DONE]"
_DONE: Final = b"data: [DONE]\n\n"
_DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NAME: Final = b"\nevent:"
PINGS: Final = frozenset((b"ping", b"keepalive", b"keep-alive", b"heartbeat"))
"""Names of events that say that the stream lives. Clients of chats take each event for a chunk."""
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"')
_MANY_LINES: Final = InBandError(502, "an event of the engine's stream has too many lines", GARBAGE)
_MANY_VALUES: Final = InBandError(502, "an event of the engine's stream has too many values", GARBAGE)


class SseScanner:
    """The scanner of one stream.

    strip_usage: drops the usage event, which the client did not ask for. What else that event has
        moves to the last event before it, which is held until then.
    choices: answers that the request has; 1 or more.
    tokens: takes the token ids out of the events; None if the gateway has asked for none.
    has_long_event: what waits was longer than most events are.
    has_opening: an event that opens the answer has come, before any part of it.
    """

    __slots__ = (
        "_choices",
        "_finished_choices",
        "_head",
        "_head_bytes",
        "_held",
        "_inspected_bytes",
        "_inspected_count",
        "_max_event_bytes",
        "_partial",
        "_partial_lines",
        "_partial_values",
        "_tail",
        "_tail_bytes",
        "error",
        "event_count",
        "has_long_event",
        "has_opening",
        "is_aborted",
        "is_done",
        "strip_usage",
        "tokens",
        "usage",
    )

    def __init__(self, *, strip_usage: bool, max_event_bytes: int, choices: int = 1) -> None:
        self._partial = bytearray()
        self._partial_lines = self._partial_values = 0
        self._inspected_count = self._inspected_bytes = 0  # of one read, in however many chunks
        self._max_event_bytes = max_event_bytes
        self._choices = choices
        self._finished_choices = 0
        self._head = self._tail = b""  # around the text of an event that was searched
        self._head_bytes = self._tail_bytes = 0
        self._held = b""
        self.tokens: TokenTap | None = None
        self.has_long_event = self.has_opening = False
        self.strip_usage = strip_usage
        self.usage: Usage | None = None
        self.error: InBandError | None = None
        self.is_aborted = False
        self.is_done = False
        self.event_count = 0

    def filter_chunks(self, chunks: list[bytes]) -> list[bytes]:
        """Returns the bytes that may go to the client now.

        Nothing follows after `error`, `is_aborted` or `is_done`.
        """
        passed: list[bytes] = []
        tokens = self.tokens
        self._inspected_count = self._inspected_bytes = 0
        for chunk in chunks:
            is_whole = not self._partial and chunk.endswith(b"\n\n")
            if not is_whole:
                chunk = self._take_complete(chunk)
                if not chunk:
                    if self.error is not None:
                        break
                    continue
            if tokens is not None:
                taken: bytes | None = None
                if tokens.problem:  # its usual events have no ids
                    taken = chunk if is_whole and self._is_like_earlier(chunk) else None
                elif is_whole and self._head_bytes:
                    taken = tokens.take_text(chunk)
                if taken is not None:
                    self.event_count += 1
                    passed.append(taken)
                    continue
                chunk = tokens.take(chunk)
                if chunk == COMMENT:
                    passed.append(chunk)
                    continue
            if is_whole and self._is_like_earlier(chunk):
                self.event_count += 1
                passed.append(chunk)
                continue
            parts = self._count_unread(chunk)
            if parts == 0:
                chunk = self._inspect_events(chunk)
            else:
                self.event_count += parts
                if self._held:
                    passed += self.release_held()
                self._remember_frame(chunk)
            if chunk:
                passed.append(chunk)
            if self.error is not None or self.is_aborted or self.is_done:
                break
        return passed

    def _count_unread(self, chunk: bytes) -> int:
        """Returns the events with a part of the answer in a chunk that may pass unread; 0 if it may
        not.
        """
        if not chunk.startswith(b"data: ") or words_of(chunk) & (USAGE | ERROR | FINISH):
            return 0
        if chunk.startswith(b"data: {") and _is_one_event(chunk):
            return 1
        # `find` and not `in`, which first tries to read the bytes as a number
        return 1 if chunk.find(_END) < 0 and chunk.find(_NAME) < 0 else 0

    def _is_like_earlier(self, chunk: bytes) -> bool:
        """Returns whether the chunk is an event that was searched, with another text.

        Why this is enough: what is searched for holds a quote or a bracket, and the head ends with
        the key of the text. So the only match across its edges is a text that is one of `_WORDS`.
        """
        head = self._head_bytes
        if not head:
            return False
        end = len(chunk) - self._tail_bytes
        if end < head or not chunk.startswith(self._head) or not chunk.endswith(self._tail):
            return False
        text = chunk[head:end]
        return _QUOTE not in text and _BRACKET not in text and (end - head != _WORD_BYTES or text not in _WORDS)

    def _remember_frame(self, chunk: bytes) -> None:
        """Remembers the bytes around the text of an event in which nothing was found."""
        if len(chunk) > _MAX_TEMPLATE_BYTES or not _is_one_event(chunk):
            return
        for start in _TEXT_STARTS:
            at = chunk.find(start)
            head = at + len(start)
            end = chunk.find(b'"', head) if at >= 0 else -1
            if end >= 0:
                self._head, self._tail = chunk[:head], chunk[end:]
                self._head_bytes, self._tail_bytes = head, len(chunk) - end
                if self.tokens is not None:
                    self.tokens.remember_frame(self._head, self._tail)
                return

    @property
    def next_sequence_number(self) -> int:
        return 0

    @property
    def waiting_bytes(self) -> int:
        return len(self._partial) + len(self._held)

    @property
    def is_finished(self) -> bool:
        return self.is_done or self.is_aborted or self.error is not None

    @property
    def has_whole_answer(self) -> bool:
        return self._finished_choices >= self._choices

    def end(self, *, is_cut: bool = False) -> list[bytes]:
        """Returns what goes to the client when the body has ended.

        Clients read a last event without its empty line. An answer whose choices have all finished
        is whole. Here it gets `[DONE]` and its usage, if the engine has not sent them.

        is_cut: it has not ended as HTTP says it should, so a last event may lack its end.
        """
        passed: list[bytes] = []
        if self._partial and not self.is_finished and not is_cut:
            event = bytes(self._partial) + b"\n\n"
            data = event_data(event)
            fields = None if data is None or data == _END else _decode_event(data)
            if data == _END or fields is not None:
                self._partial.clear()
                self._take_event(event, data, fields, passed)
        passed += self.release_held()
        if not self.is_finished and self.has_whole_answer:
            tokens = self.tokens
            if self.usage is None and tokens is not None and tokens.prompt_tokens:
                generated = tokens.generated - tokens.earlier
                self.usage = Usage(tokens.prompt_tokens, generated, None)
                passed += [] if self.strip_usage else [tokens.usage_event(generated)]
            passed.append(_DONE)
            self.is_done = True
        return passed

    def _take_complete(self, chunk: bytes) -> bytes:
        """Returns all complete events; the rest waits for the next chunk.

        Sets `error` if the rest is too long.
        """
        partial = self._partial
        if not partial and chunk.endswith(b"\n\n"):
            return chunk
        search_start = max(
            0, len(partial) - _LONGEST_END + 1
        )  # no boundary is before it: the part would have been cut there
        partial += chunk
        if len(partial) > _LONG_EVENT_BYTES:
            is_new = len(partial) - len(chunk) <= _LONG_EVENT_BYTES  # none of it is counted yet
            self._partial_values += _count_values(bytes(partial) if is_new else chunk)
            if self._partial_values > _MAX_VALUES:
                self.error = _MANY_VALUES
                return b""
        complete, lines = b"", _count_lines(chunk)
        self._partial_lines += lines
        if lines:
            complete_size = max(
                at + len(end) if (at := partial.rfind(end, search_start)) >= 0 else 0 for end in _EVENT_ENDS
            )
            complete = bytes(partial[:complete_size])
            del partial[:complete_size]
            if complete:
                self._partial_lines, self._partial_values = _count_lines(partial), 0
        if len(partial) > _LONG_EVENT_BYTES:
            self.has_long_event = True
        if self._partial_lines > _MAX_LINES:
            self.error = _MANY_LINES
        if len(partial) > self._max_event_bytes:
            # The client chooses the size of an event, by log probabilities and token ids.
            self.error = InBandError(502, "an event of the engine's stream is too long", GARBAGE, is_charged=True)
        return complete

    def _inspect_events(self, events: bytes) -> bytes:
        """Inspects events one by one; returns those that may pass.

        Sets `error` if a read has very many for their bytes, since each costs a microsecond.
        """
        passed: list[bytes] = []
        parts = _split_events(events)
        self._inspected_count += len(parts)
        self._inspected_bytes += len(events)
        count = self._inspected_count
        if count > _MAX_TINY_EVENTS and self._inspected_bytes < _MIN_MEAN_EVENT_BYTES * count:
            self.error = InBandError(502, "the engine's stream is a flood of empty events", GARBAGE)
            return b""
        for event in parts:
            if len(event) > _MAX_LINES and _count_lines(event.strip(_LINE_ENDS)) > _MAX_LINES:
                self.error = _MANY_LINES
            if self.is_finished:
                break
            self._read_event(event, passed)
        return b"".join(passed)

    def _read_event(self, event: bytes, passed: list[bytes]) -> None:
        """Reads an event, and adds to `passed` what may pass now."""
        if event.startswith(b"data:") and _is_one_event(event) and _CARRIAGE_RETURN not in event:
            data: bytes | None = event[5:].strip()
        else:
            data = event_data(event)
            if event_name(event) in PINGS:
                event, data = COMMENT, None
        self._take_event(event, data, None if not data or data == _END else _decode_event(data), passed)

    def release_held(self) -> list[bytes]:
        held, self._held = self._held, b""
        return [held] if held else []

    def _take_event(self, event: bytes, data: bytes | None, fields: StreamEvent | None, passed: list[bytes]) -> None:
        """Inspects an event, and adds to `passed` what may pass now."""
        finished = self._finished_choices
        passes = self._inspect_event(event, data, fields)
        # Whole with the counts of one event: each further one would be added to all of it.
        if self._held and (passes or self.is_finished or self.usage is not None):
            passed += self.release_held()
        elif passes and self.strip_usage and finished < self._choices <= self._finished_choices:
            self._held = event
            self.has_long_event = self.has_long_event or len(event) > _LONG_EVENT_BYTES
            self._head_bytes = 0  # what follows is searched
            return
        if passes:
            passed.append(event)

    def _passes_without_data(self, event: bytes) -> bool:
        """Returns whether an event without data may pass, such as a comment."""
        text = event.lstrip()
        if text.startswith(_ERROR_FIELD):
            self.error = parse_in_band_error(text[len(_ERROR_FIELD) :].strip(), 500)
            return False
        if text and _FIELD.match(text) is None:
            self.error = InBandError(502, "the engine's stream is not an event stream", GARBAGE)
            return False
        return True

    def _inspect_event(self, event: bytes, data: bytes | None, fields: StreamEvent | None) -> bool:
        """Reads an event; returns whether it may pass.

        fields: None if it has no data, is the end or is no JSON.
        """
        if not data:
            return self._passes_without_data(event)
        if data == _END:
            self.is_done = True
            return True
        if fields is None:
            self.error = InBandError(502, "the engine's stream holds an event that is not JSON", GARBAGE)
            return False
        error = error_in(fields.error, fields.object, data)
        if error:
            self.error = parse_in_band_error(error, 500)
            return False
        usage = read_usage(fields.usage)
        if usage is not None:
            self.usage = usage
            if self.strip_usage and not fields.choices:
                if self._held and len(self._held) + len(data) <= _LONG_EVENT_BYTES:
                    self._held = _with_members(self._held, data)
                return False
        has_finish = _FINISH.search(data) is not None
        if has_finish and has_failed_finish(data):
            self.is_aborted = True
            return False
        if not fields.choices:
            self.has_opening = True
            return True
        if has_finish:
            self._finished_choices += (
                1 if self._choices == 1 else sum([1 for _ in islice(_FINISH.finditer(data), self._choices)])
            )
        self.event_count += 1
        return True


def filter_first_chunks(scanner: SseScanner, chunks: list[bytes]) -> list[bytes]:
    """Returns the start of a stream; every event is inspected, so that nothing else passes as a
    stream.
    """
    passed: list[bytes] = []
    scanner._inspected_count = scanner._inspected_bytes = 0
    for chunk in chunks:
        if scanner.is_finished:
            break
        complete = scanner._take_complete(chunk).removeprefix(_BYTE_ORDER_MARK)
        if complete and scanner.tokens is not None:
            complete = scanner.tokens.take(complete)
        events = scanner._inspect_events(complete) if complete and not scanner.is_finished else b""
        if events:
            passed.append(events)
    return passed


def _split_events(events: bytes) -> list[bytes]:
    """Splits events, each with its empty lines."""
    if _CARRIAGE_RETURN in events:
        return _ANY_EVENT.findall(events)
    if _is_one_event(events):
        return [events]
    if events.find(b"\n\n\n") >= 0:
        return _ANY_EVENT.findall(events)
    return [part + b"\n\n" for part in events.split(b"\n\n") if part]


def _is_one_event(events: bytes) -> bool:
    """Whether there is one line with its end, without any other feed."""
    return (
        len(events) > len(_EMPTY_LINE)
        and events.endswith(_EMPTY_LINE)
        and _LINE_FEED not in events[: -len(_EMPTY_LINE)]
    )


def _decode_event(data: bytes) -> StreamEvent | None:
    """Returns the fields of an event that are read; None if its data is no JSON object.

    The choices of a long event stay one value: they may be millions.
    """
    try:
        if len(data) <= _LONG_EVENT_BYTES:
            return EVENT_DECODER.decode(data)
        fields = LONG_EVENT_DECODER.decode(data)
    except _DECODE_ERRORS:
        return None
    choices = msgspec.Raw(b"null") if fields.choices is msgspec.UNSET else fields.choices
    start = bytes(memoryview(choices)[:64]).translate(None, b" \t\r\n")
    if start[:1] not in (b"[", b"n"):
        return None
    return StreamEvent(fields.usage, fields.error, fields.object, [] if start[:2] in (b"[]", b"nu") else [choices])


def _count_lines(text: bytes | bytearray) -> int:
    return text.count(b"\n") + text.count(b"\r")


def _count_values(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{") + text.count(b'":') + text.count(b",") // 16


def _with_members(event: bytes, usage_data: bytes) -> bytes:
    """Returns an event with the members that only the usage event has.

    llama.cpp sends its timings there, and vLLM its fingerprint and metrics.

    Why the search: most usage events have nothing more, and to decode two events costs more than
    all else that is done with them.
    """
    at = usage_data.find(_USAGE_ALONE)
    if at > 0 and usage_data.find(_NEXT_MEMBER, at) < 0 and event.find(usage_data[:at]) >= 0:
        return event
    own, others = decode_members(event_data(event) or b""), decode_members(usage_data)
    if not own or others is None:
        return event
    added = b"".join(
        [
            b",%b:%b" % (msgspec.json.encode(name), value)
            for name, value in others.items()
            if name not in own and name != "usage"
        ]
    )
    end = event.rfind(b"}")
    return event[:end] + added + event[end:]


def decode_members(data: bytes) -> dict[str, msgspec.Raw] | None:
    """Returns the members of a JSON object; None if it is none."""
    try:
        return MEMBERS_DECODER.decode(data)
    except _DECODE_ERRORS:
        return None


def event_name(event: bytes) -> bytes:
    """Returns the name of an event, which its last such line gives; empty if it has none."""
    names = [line[6:].strip() for line in event.strip().splitlines() if line.startswith(b"event:")]
    return names[-1] if names else b""


def event_data(event: bytes) -> bytes | None:
    """Returns the data of an event; None if it has none, like a comment."""
    lines = [line[5:].strip() for line in event.strip().splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
