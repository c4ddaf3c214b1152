"""The token ids of a stream, from which another engine continues it if its own engine ends.

The gateway asks engines for the ids of chats and completions (`return_token_ids`). `SentTokens`
takes them out of the events, and keeps them as four bytes each. The client gets the bytes that the
engine would have sent without them.

A continuation begins behind the last token whose text the client has. Tokens behind it are dropped:
parts of a character, or of a mark that the engine's parser holds. The next engine draws them again,
from the same distribution, since the client has seen nothing that depends on them.

Tool calls are held until they are whole. A call that was sent in part could only go on with the
very tokens that the first engine would have drawn. An event without text that shows its token is
held until the next text: its token may be drawn again. Comments take the places of held events, so
that the client sees that its stream lives.

An event of several tokens can end within a character or mark, too. Of the last event with text
its place and bytes are kept, so that an engine can say to which token that text belongs.

The ids of the prompt come with the first event. A continued stream has them too, and they prove
that the engine has read the ids that it was given.

Source: vLLM 0.32, entrypoints/openai/chat_completion/serving.py.
"""

from array import array
from typing import Final

import msgspec

from fairlead_gateway.native import READ_IDS, TAKE_TEXT
from fairlead_gateway.upstream.event_words import (
    EMPTY_CONTENT,
    EMPTY_DELTA,
    EMPTY_STRING,
    EMPTY_TEXT,
    FINISH,
    HIDDEN_IDS,
    IDS,
    IDS_KEY,
    LOG_PROBABILITIES,
    NO_IDS,
    OTHER_PARTS,
    PROMPT_IDS,
    PROMPT_IDS_KEY,
    TOOL_CALLS,
    words_of,
)
from fairlead_gateway.upstream.response_schemas import MEMBERS_DECODER
from fairlead_gateway.upstream.sse import COMMENT
from fairlead_gateway.upstream.stream_record import SHORT_BYTES, TokenTap
from fairlead_gateway.upstream.usage import has_failed_finish

MEMORY: Final = "memory"
NO_TOKEN_IDS: Final = "no-token-ids"
IDS_NOT_READ: Final = "ids-not-read"
LONG_TOOL_CALL: Final = "long-tool-call"
PART_OF_TEXT: Final = "part-of-text"
MAX_HELD_BYTES: Final = 1_048_576
"""Limit: events of tool calls of one stream that are held."""

_PROMPT_AT: Final = len(PROMPT_IDS_KEY) - 1
_END: Final = b"\n\n"
_LINE_FEED: Final = ord("\n")
_AT: Final = len(IDS_KEY) - 1
_NULL: Final = b"null"
_ANY_KEY: Final = b'token_ids":['
_TEXT_ENDS: Final = (b'"}', b'",')
_NO_FRAME: Final = (b"", b"", b"")
_IDS_DECODER: Final = msgspec.json.Decoder(list[int])
_ID_BYTES: Final = 4
_MAX_PROMPT_IDS_BYTES: Final = 16_777_216
_MAX_IDS_BYTES: Final = 65_536
_MAX_STRIPPED: Final = 4_096
"""Limits: ids of a prompt and of an event, as JSON text; what is taken out of events at once."""
_MAX_IDS: Final = 1_048_576
"""Limit: tokens of a stream and its prompt; the next engine gets all of them in one request."""
_COUNTED_AT_ONCE: Final = 256
_MAX_NAME_BYTES: Final = 256
_NAMES: Final = ("id", "object", "created", "model")


class TokenMemory:
    """The bytes of token ids, texts, events and requests that all open streams of a worker keep."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0

    @property
    def is_full(self) -> bool:
        return self.used_bytes > self.max_bytes


class SentTokens(TokenTap):
    """The tokens of one stream.

    memory: shared with other streams.
    strips: the client did not ask for token ids.
    ids: of the prompt, and of what was generated.
    shown: how many of them the client has as text, with the prompt.
    head: the first event, without ids; it names the answer.
    last, last_at: the last event with text, and how many tokens came before it.
    body: of the request, without its prompt; empty if it is not kept.
    is_finished: the answer's finish reason was sent.
    is_replayable: the stream can go on by a replay only.
    """

    __slots__ = (
        "_counted",
        "_counted_bytes",
        "_expected",
        "_frame",
        "_frame_tail",
        "_held",
        "_held_bytes",
        "_is_in_call",
        "_memory",
        "_strips",
        "body",
        "head",
        "ids",
        "is_finished",
        "is_replayable",
        "last",
        "last_at",
        "shown",
    )

    def __init__(self, memory: TokenMemory, *, strips: bool, is_replayable: bool = False) -> None:
        self._memory = memory
        self.problem = ""
        self._strips = strips
        self._counted = self._counted_bytes = 0
        self._expected = False
        self._frame, self._frame_tail = _NO_FRAME, b""  # see `remember_frame`
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_in_call = False
        self.ids = array("I")
        self.prompt_tokens = self.shown = self.earlier = self.last_at = 0
        self.head = self.last = self.body = b""
        self.is_finished = False
        self.is_replayable = is_replayable

    @property
    def generated(self) -> int:
        return self.shown - self.prompt_tokens

    def prompt_ids(self, max_count: int) -> bytes:
        count = self.prompt_tokens
        return self.ids[:count].tobytes() if count <= min(max_count, len(self.ids)) else b""

    def names(self) -> dict[str, msgspec.Raw]:
        """Returns the fields that all events of the answer share."""
        try:
            fields = MEMBERS_DECODER.decode(self.head[self.head.find(b"{") :])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}
        names = ((name, bytes(fields.get(name, b""))) for name in _NAMES)
        return {name: msgspec.Raw(text) for name, text in names if 0 < len(text) <= _MAX_NAME_BYTES}

    def usage_event(self, generated: int) -> bytes:
        prompt = self.prompt_tokens
        counts = {"prompt_tokens": prompt, "total_tokens": prompt + generated, "completion_tokens": generated}
        return b"data: " + msgspec.json.encode(self.names() | {"choices": [], "usage": counts}) + b"\n\n"

    def take(self, events: bytes) -> bytes:
        if self.problem:
            return self._without_ids(events)
        last = len(events) - len(_END)
        if _LINE_FEED in events[:last] and 0 <= events.find(_END) < last:
            return b"".join([self._take_event(event + _END) for event in events.split(_END) if event])
        return self._take_event(events)

    def remember_frame(self, head: bytes, tail: bytes) -> None:
        if TAKE_TEXT is None or (head == self._frame[0] and tail == self._frame_tail):
            return
        words = words_of(head + b" " + tail)  # with a text between, or the quotes around it were a word
        has_more = words & (IDS | TOOL_CALLS | FINISH | EMPTY_DELTA | EMPTY_STRING) != 0
        is_usual = words & NO_IDS != 0 and tail.startswith(_TEXT_ENDS) and not has_more
        at = tail.find(HIDDEN_IDS) + len(HIDDEN_IDS) - len(_NULL)
        self._frame = (head, tail[:at], tail[at + len(_NULL) :]) if is_usual and at > 0 else _NO_FRAME
        self._frame_tail = tail

    def take_text(self, event: bytes) -> bytes | None:
        head, middle, tail = self._frame
        is_open = self.prompt_tokens > 0 and not self._expected and not self._is_in_call
        if not head or not is_open or not self._strips or self.problem or self._held:
            return None
        take_text = TAKE_TEXT  # compiled code looks up a name of another module each time
        if take_text is None:
            return None
        before = len(self.ids)
        taken = take_text(event, head, middle, tail, self.ids)
        if taken is None:
            return None
        self.last, self.last_at, self.shown = taken, before, len(self.ids)
        if (self.shown - self._counted >= _COUNTED_AT_ONCE or len(taken) > SHORT_BYTES) and self._count():
            self._give_up(MEMORY, b"")
        return taken

    def keep_body(self, body: bytes) -> None:
        """Keeps the body of the request, unless the memory of all streams is full."""
        self.body = body
        if self._count():
            self.body = b""
            self._count()

    def rewind(self) -> None:
        """Drops the tokens that the client has not got as text, and what is held.

        The next event must be the first one of an engine that has read these tokens.
        """
        del self.ids[self.shown :]
        self._release_held(b"")
        self._is_in_call, self._expected = False, True
        self.earlier = self.generated
        self._count()

    def anew(self) -> "SentTokens":
        """Returns the tokens of an engine that gets the request again; its events keep their
        ids.
        """
        tokens = SentTokens(self._memory, strips=False)
        tokens.head = self.head
        return tokens

    def settle(self, shown: int | None) -> None:
        """Sets how many tokens the client has as text, as an engine knows; None if it does not."""
        self.last, self.last_at = b"", self.shown
        if shown is None:
            self.problem = PART_OF_TEXT
        else:
            self.shown = self.last_at = shown

    def release(self) -> None:
        self.ids = array("I")
        if self._held:
            self._release_held(b"")
        self.last = self.body = b""
        self.head = self.head if len(self.head) <= SHORT_BYTES else b""
        self._count()

    def _take_event(self, event: bytes) -> bytes:
        if self.problem:  # since an earlier one of these events
            return self._without_ids(event)
        words = words_of(event)
        if not self.prompt_tokens or self._expected:
            event = self._take_prompt(event, words)
            if self.problem:
                return event
        if not words & IDS:
            return self._give_up(NO_TOKEN_IDS, event) if words & NO_IDS else event
        at = event.find(IDS_KEY)
        end, before = event.find(b"]", at), len(self.ids)
        if end < 0 or end - at > _MAX_IDS_BYTES:
            return self._give_up(NO_TOKEN_IDS, event)
        try:
            for text in event[at + _AT + 1 : end].split(b","):
                if text:
                    self.ids.append(int(text))
        except (ValueError, OverflowError):
            return self._give_up(NO_TOKEN_IDS, event)
        if self._strips:
            event = event[: at + _AT] + _NULL + event[end + 1 :]
        event = self._pass_on(event, words, before)
        is_due = len(self.ids) - self._counted >= _COUNTED_AT_ONCE or len(self.last) > SHORT_BYTES
        return self._give_up(MEMORY, event) if is_due and self._count() else event

    def _pass_on(self, events: bytes, words: int, before: int) -> bytes:
        """Holds an event with a tool call, and notes how much of the answer the client has.

        before: the tokens before those of the event.
        """
        if words & FINISH:
            if has_failed_finish(events):
                return events
            self.is_finished = True
        elif self._is_in_call or words & TOOL_CALLS:
            self._is_in_call = True
            return self._hold(events)
        elif words & (EMPTY_DELTA | EMPTY_TEXT) or (words & EMPTY_CONTENT and not words & OTHER_PARTS):
            # It shows nothing of the answer: its token is a part of something.
            return self._hold(events) if not self._strips or words & LOG_PROBABILITIES else events
        self.last, self.last_at = events, before
        self.shown = len(self.ids)
        return self._release_held(events) if self._held else events

    def _hold(self, events: bytes) -> bytes:
        self._held.append(events)
        self._held_bytes += len(events)
        self._memory.used_bytes += len(events)
        if self._held_bytes > MAX_HELD_BYTES:
            return self._give_up(LONG_TOOL_CALL, b"")
        return self._give_up(MEMORY, b"") if self._memory.is_full else COMMENT

    def _release_held(self, events: bytes) -> bytes:
        held = self._held
        if not held:
            return events
        self._memory.used_bytes -= self._held_bytes
        self._held, self._held_bytes = [], 0
        return b"".join([*held, events])

    def _take_prompt(self, events: bytes, words: int) -> bytes:
        if not words & PROMPT_IDS:
            return events if events.find(b"data:") < 0 else self._give_up(NO_TOKEN_IDS, events)
        at = events.find(PROMPT_IDS_KEY)
        start, end = at + _PROMPT_AT, events.find(b"]", at)
        if end - at > _MAX_PROMPT_IDS_BYTES:
            return self._give_up(NO_TOKEN_IDS, events)
        found = None if READ_IDS is None else READ_IDS(events, start, end + 1)
        if found is None:
            try:
                found = array("I", _IDS_DECODER.decode(events[start : end + 1]))
            except (msgspec.DecodeError, OverflowError):
                return self._give_up(NO_TOKEN_IDS, events)
        if self._expected:
            if found != self.ids:
                return self._give_up(IDS_NOT_READ, events)
            self._expected = False
        else:
            self.ids = found
            self.prompt_tokens = self.shown = len(found)
        if self._strips:
            events = events[:start] + _NULL + events[end + 1 :]
        if not self.head:
            self.head = events[: events.find(b"\n\n")]
        return self._give_up(MEMORY, events) if self._count() else events

    def _count(self) -> bool:
        """Counts what is kept in the memory of all streams; returns whether that is too much."""
        size, head, last, body = _ID_BYTES * len(self.ids), len(self.head), len(self.last), len(self.body)
        size += (head if head > SHORT_BYTES else 0) + (last if last > SHORT_BYTES else 0)
        size += body if body > SHORT_BYTES else 0
        memory = self._memory
        memory.used_bytes += size - self._counted_bytes
        self._counted, self._counted_bytes = len(self.ids), size
        return size > 0 and (memory.used_bytes > memory.max_bytes or len(self.ids) > _MAX_IDS)

    def _give_up(self, problem: str, events: bytes) -> bytes:
        """Keeps nothing from now on; returns what was held, and the events."""
        self.problem = problem
        events = self._release_held(self._without_ids(events))
        self.release()
        return events

    def _without_ids(self, events: bytes) -> bytes:
        if not self._strips or events.find(_ANY_KEY) < 0:
            return events
        for key in (PROMPT_IDS_KEY, IDS_KEY):
            parts: list[bytes] = []
            start, at = 0, events.find(key)
            while at >= 0 and len(parts) < _MAX_STRIPPED and (end := events.find(b"]", at)) >= 0:
                parts += (events[start : at + len(key) - 1], _NULL)
                start = end + 1
                at = events.find(key, start)
            events = b"".join([*parts, events[start:]])
        return events
