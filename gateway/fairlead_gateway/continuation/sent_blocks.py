"""The text of a stream of messages or responses, from which another engine continues it.

Engines send no token ids in these dialects. So `SentBlocks` keeps the text that the client has:
thoughts, if there are some, and then a text. Each is a block of a message, or an item of a
response.

Whatever comes behind is held until the answer ends, such as tool calls. A call that was sent in
part could only go on with the very tokens that the first engine would have drawn. A comment takes
the place of held events, so that the client sees that its stream lives. Agents give up a stream
that has no events for five minutes, and comments are none to them. So nothing is held for longer
than `MAX_HELD_SECONDS`; then the stream cannot be continued.

The error event of an engine is kept back too, since another engine may continue the answer. An
event that follows it, or one whose name is not its type, is not what the scanner of the stream has
taken it for: both pass, and the stream cannot be continued.

Source: vLLM 0.32, entrypoints/anthropic/serving.py and entrypoints/openai/responses.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec

from fairlead_gateway.continuation.sent_tokens import LONG_TOOL_CALL, MAX_HELD_BYTES, MEMORY, TokenMemory
from fairlead_gateway.upstream.named_events import numbered_part
from fairlead_gateway.upstream.response_schemas import BLOCK_EVENT_DECODER, BlockEvent
from fairlead_gateway.upstream.sse import COMMENT, event_data, event_name
from fairlead_gateway.upstream.stream_record import StreamRecord

NOT_TEXT: Final = "not-text"
MAX_HELD_SECONDS: Final = 60.0
"""Limit: events behind the text of a message or a response are held for this long."""
_END: Final = b"\n\n"
_COUNTED_AT_ONCE: Final = 1_024
_MAX_TEXT_BYTES: Final = 2_097_152
"""Limit: text of a stream; each of the next engine's last events gets all of it."""
_DELTA: Final = "content_block_delta"
_TEXT_DELTA: Final = "response.output_text.delta"
_THOUGHT_DELTA: Final = "response.reasoning_text.delta"
PARTS_ADDED: Final = ("response.content_part.added", "response.reasoning_part.added")
_OPENINGS: Final = ("message_start", "response.created")
_PASSED: Final = ("ping", "response.in_progress", "response.queued")
_FINALS: Final = ("message_delta", "message_stop", "response.completed", "response.incomplete")
_FAILED: Final = ("error", "response.failed")
_STARTS: Final = ("content_block_start", "response.output_item.added")
_TEXTS: Final = ("text", "message")
_THOUGHTS: Final = ("thinking", "reasoning")
_NUMBER: Final = re.compile(rb'("sequence_number"\s*:\s*)(\d{1,15})\b')
_DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class SentPart:
    """The thoughts of an answer, or its text.

    opening: the event that names it.
    text: that the client has, in UTF-8.
    deltas: events with text.
    is_open: its content has begun; an item of a response opens before its content.
    """

    __slots__ = ("deltas", "is_open", "is_thoughts", "opening", "text")

    def __init__(self, opening: bytes, *, is_thoughts: bool, is_open: bool) -> None:
        self.opening = opening
        self.is_thoughts = is_thoughts
        self.is_open = is_open
        self.text = bytearray()
        self.deltas = 0


class SentBlocks(StreamRecord):
    """The parts of one stream, and the events that name it.

    memory: shared with other streams.
    now: the clock's monotonic seconds.
    body: of the request, which another engine gets; empty once the stream cannot be continued.
    head: the event that opens the answer; empty until then.
    parts: in their order; the last one is open.
    deltas: events with text.
    is_finished: the answer's stop reason was sent.
    last: the last event that the client has, or what has its number.
    failure: the error event of an engine, which the client does not have.
    """

    __slots__ = (
        "_counted",
        "_held",
        "_held_bytes",
        "_held_since",
        "_holds_call",
        "_memory",
        "_now",
        "_text_bytes",
        "body",
        "deltas",
        "failure",
        "head",
        "is_finished",
        "last",
        "parts",
    )

    def __init__(self, memory: TokenMemory, body: bytes, now: Callable[[], float]) -> None:
        self._memory = memory
        self.body = body
        self.problem = ""
        self._counted = self._text_bytes = 0
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._held_since = 0.0
        self._holds_call = False
        self._now = now
        self.parts: list[SentPart] = []
        self.deltas = 0
        self.is_finished = False
        self.head = self.last = self.failure = b""
        self._count()
        if self.problem:
            self.release()

    def take(self, chunks: list[bytes]) -> list[bytes]:
        """Returns whole events for the client, or a comment in place of held ones."""
        passed: list[bytes] = []
        held_bytes = self._held_bytes
        for chunk in chunks:
            if chunk.find(_END) == len(chunk) - len(_END):
                taken = self._take_event(chunk)
            else:
                events = chunk.replace(b"\r\n", b"\n").split(_END)
                taken = b"".join([self._take_event(event + _END) for event in events if event])
            if taken:
                passed.append(taken)
        return passed if passed or self._held_bytes == held_bytes else [COMMENT]

    def rewind(self) -> None:
        self._release_held(b"")
        self._holds_call, self.failure = False, b""

    def release(self) -> None:
        self._release_held(b"")
        self.parts = []
        self.head = self.last = self.body = self.failure = b""
        self._text_bytes = 0
        self._count()

    def _take_event(self, event: bytes) -> bytes:
        data = b"" if self.problem else event_data(event)
        if not data or data[:1] != b"{":
            return event
        try:
            fields = BLOCK_EVENT_DECODER.decode(data)
        except _DECODE_ERRORS:
            return self._give_up(NOT_TEXT, self.failure + event)
        if self.failure or not fields.type or not has_name(event, fields.type):
            return self._give_up(NOT_TEXT, self.failure + event)
        if fields.type in _FAILED:
            self.failure = _numbered_behind(self.last, event) if self._held else event
            self._count()
            is_kept = len(event) <= MAX_HELD_BYTES and not self.problem
            return b"" if is_kept else self._give_up(MEMORY, self.failure)
        passes = self._passes(fields, event)
        if self.problem:
            return self._give_up(self.problem, event)
        if passes:
            self.last = numbered_part(event)
            return self._release_held(event)
        now = self._now()
        if not self._held:
            self._held_since = now
        self._held.append(event)
        self._held_bytes += len(event)
        self._memory.used_bytes += len(event)
        if self._held_bytes > MAX_HELD_BYTES or now - self._held_since > MAX_HELD_SECONDS:
            return self._give_up(LONG_TOOL_CALL, b"")
        return self._give_up(MEMORY, b"") if self._memory.is_full else b""

    def _passes(self, fields: BlockEvent, event: bytes) -> bool:
        """Whether the client gets an event now, and all that is held."""
        kind = fields.type
        if kind in (_DELTA, _TEXT_DELTA, _THOUGHT_DELTA):
            return not self._held and self._add(fields)
        if kind in _STARTS:
            return self._start(fields, event)
        if kind in PARTS_ADDED:
            if self._held or not self.parts or self.parts[-1].is_open:
                return False
            self.parts[-1].is_open = True
            return True
        if kind in _OPENINGS:
            self.head = event
            self._count()
            if len(event) > MAX_HELD_BYTES:
                self.problem = MEMORY
        self.is_finished = self.is_finished or kind in _FINALS
        return kind in _OPENINGS or kind in _FINALS or (kind in _PASSED and not self._held)

    def _add(self, fields: BlockEvent) -> bool:
        """Adds a delta to the open part; returns whether it is one of its text."""
        delta = fields.delta
        if isinstance(delta, str):
            is_thoughts, text = fields.type == _THOUGHT_DELTA, delta
        elif delta is not None and (found := delta.text if delta.thinking is None else delta.thinking) is not None:
            is_thoughts, text = delta.thinking is not None, found
        else:
            return False
        if not self.parts or self.parts[-1].is_thoughts != is_thoughts:
            self.problem = NOT_TEXT
            return True
        part, before = self.parts[-1], len(self.parts[-1].text)
        part.text += text.encode()
        part.deltas += bool(text)
        self.deltas += bool(text)
        self._text_bytes += len(part.text) - before
        if self._text_bytes + len(self.body) - self._counted >= _COUNTED_AT_ONCE:
            self._count()
        return True

    def _start(self, fields: BlockEvent, event: bytes) -> bool:
        """Opens a part, unless it has to come behind what is held."""
        started = fields.content_block or fields.item
        if started is None or not started.type:
            self.problem = NOT_TEXT
            return True
        kind = started.type
        follows = not self.parts or (self.parts[-1].is_thoughts and kind in _TEXTS)
        if self._holds_call or not follows or (kind not in _TEXTS and kind not in _THOUGHTS):
            self._holds_call = True
            return False
        if numbered_part(event) is not event:  # it is long
            self.problem = MEMORY
        self.parts.append(SentPart(event, is_thoughts=kind in _THOUGHTS, is_open=fields.item is None))
        return True

    def _count(self) -> None:
        """Counts what is kept in the memory of all streams; the stream gives up if that is full."""
        size = self._text_bytes + len(self.body) + len(self.head) + len(self.failure)
        self._memory.used_bytes += size - self._counted
        self._counted = size
        if self.body and (self._memory.is_full or self._text_bytes > _MAX_TEXT_BYTES):
            self.problem = MEMORY

    def _release_held(self, event: bytes) -> bytes:
        held = self._held
        if not held:
            return event
        self._memory.used_bytes -= self._held_bytes
        self._held, self._held_bytes = [], 0
        return b"".join([*held, event])

    def _give_up(self, problem: str, event: bytes) -> bytes:
        """Keeps nothing from now on; returns what was held, and the event."""
        self.problem = problem
        event = self._release_held(event)
        self.release()
        return event


def has_name(event: bytes, kind: str) -> bool:
    """Whether an event has the name of its type, or none."""
    name = kind.encode()
    is_usual = event.startswith(b"event: " + name + b"\n") and event.find(b"\nevent:") < 0
    return is_usual or event_name(event) in (b"", name)


def _numbered_behind(last: bytes, event: bytes) -> bytes:
    found = _NUMBER.search(last)
    return event if found is None else _NUMBER.sub(b"\\g<1>%d" % (int(found[2]) + 1), event, count=1)
