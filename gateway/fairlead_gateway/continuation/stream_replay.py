"""Streams that go on by replay: another engine answers the whole request again, and the client gets
what it lacks.

Engines count grammars, stop strings and penalties from the start of a request, so that such a
stream cannot go on from its tokens. A replay has the whole request. The answer is the same one if
the engine repeats it: it is greedy, or has a seed. Requests that are sampled without a seed get one
from the gateway.

The part that the client has must come again: the same tokens, and the same text of each field. It
is dropped. Engines may group tokens into events otherwise, so the client's last token may lie in
the middle of an event. A replay
that differs ends the stream with an error, before anything of it was sent.

Of the text, its length and checksum are kept. A request's body is kept until its stream ends.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from fairlead_gateway.continuation.continued_stream import MAX_BREAKS, PROGRESS_TOKENS, Queries
from fairlead_gateway.continuation.sent_tokens import MEMORY, SentTokens, TokenMemory
from fairlead_gateway.continuation.stream_tokens import (
    StreamTokens,
    body_with_seed,
    body_with_tokens,
)
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.upstream.event_fields import is_opening, only_choice, split_events
from fairlead_gateway.upstream.response import ReplayFailed
from fairlead_gateway.upstream.sse import COMMENT

DIFFERS: Final = "replay-differs"
WITHIN_LOGPROBS: Final = "logprobs"
_TEXTS: Final = ("reasoning", "reasoning_content", "content", "text")


class StreamReplay(StreamTokens):
    """A stream that another engine can replay.

    request_id: the gateway's, from which the seed follows.
    memory: of the bodies that are kept; if it is full, the stream cannot go on.
    on_caught_up: called once when the client gets something again.
    silent_since: when the client got the last part; None while it gets the stream.
    """

    __slots__ = (
        "_broke_at",
        "_compared",
        "_expected",
        "_has",
        "_memory",
        "_position",
        "_replayed",
        "_request_body",
        "_strips",
        "on_caught_up",
        "silent_since",
    )

    def __init__(self, request: ModelRequest, tokens: SentTokens, request_id: str, memory: TokenMemory) -> None:
        super().__init__(request, tokens)
        tokens.keep_body(b"")  # the body is kept here instead, with its prompt
        body, self._strips = body_with_tokens(request, request.body)
        self._request_body = body_with_seed(request, body, request_id)
        self._memory = memory
        memory.used_bytes += len(self._request_body)
        if memory.used_bytes > memory.max_bytes:
            self._release_body()
        self._has = SentSums()
        self._replayed = SentSums()
        self._expected: SentTokens | None = None  # None: the client gets what comes
        self._compared = self._position = self._broke_at = 0
        self.on_caught_up: Callable[[], None] | None = None
        self.silent_since: float | None = None

    @property
    def is_replayed(self) -> bool:
        return True

    @property
    def is_behind(self) -> bool:
        return self._expected is not None

    @property
    def generated(self) -> int:
        return (self.tokens if self._expected is None else self._expected).generated

    @property
    def has_progressed(self) -> bool:
        # An engine that ends where the one before it has ended may do so for this request.
        here = self.tokens.generated
        is_elsewhere = here >= PROGRESS_TOKENS and abs(here - self._broke_at) >= PROGRESS_TOKENS
        return is_elsewhere and self.continuations < MAX_BREAKS

    @property
    def is_whole(self) -> bool:
        return self.tokens.is_finished

    def queries(self, engine: str) -> Queries:
        yield from ()
        return ""

    def refusal(self) -> str:
        tokens = self.tokens
        if tokens.problem or tokens.is_finished:
            return tokens.problem
        return "" if self._request_body else MEMORY

    def next_body(self) -> bytes:
        self._broke_at = self.tokens.generated
        if self._expected is None:
            self._expected = self.tokens
            self._expected.rewind()
        else:
            self.tokens.release()
        self.tokens = self._expected.anew()
        self.start(self._expected)
        self._compared, self._position = 0, self._expected.prompt_tokens
        self._replayed = SentSums()
        self.events = 0  # a replay counts those of the whole
        return self._request_body

    def splice(self, events: list[bytes]) -> list[bytes]:
        if self._expected is not None:
            self._compare_tokens(self._expected)
        spliced: list[bytes] = []
        for event, fields in split_events(events):
            expected = self._expected
            if fields is None:
                if expected is not None and event.startswith(b"data:"):
                    self._fail(DIFFERS)  # its end, before all has come that the client has
                spliced.append(event)
            elif is_opening(fields):
                continue
            elif expected is None or self._cut(fields, expected):
                self._note(fields)
                self._hide_tokens(fields)
                spliced.append(self.as_own(fields))
            else:
                spliced.append(COMMENT)
        return spliced

    def note(self, events: list[bytes]) -> None:
        """Adds the texts of the first engine's events to what the client has."""
        for _, fields in split_events(events):
            if fields is not None:
                self._note(fields)

    def release(self) -> None:
        super().release()
        if self._expected is not None:
            self._expected.release()
        self._release_body()

    def _release_body(self) -> None:
        self._memory.used_bytes -= len(self._request_body)
        self._request_body = b""

    def _fail(self, reason: str) -> None:
        self.tokens.problem = reason
        raise ReplayFailed

    def _compare_tokens(self, expected: SentTokens) -> None:
        """Compares all tokens that have come with those that the client has."""
        tokens = self.tokens
        if tokens.problem:
            self._fail(tokens.problem)
        end = min(len(tokens.ids), expected.shown)
        if tokens.ids[self._compared : end] != expected.ids[self._compared : end]:
            self._fail(DIFFERS)
        self._compared = end

    def _cut(self, fields: dict[str, Any], expected: SentTokens) -> bool:
        """Takes what the client has out of an event; returns whether something is left.

        Nothing is left unless all that the client has has come.
        """
        choice = only_choice(fields)
        if choice is None:
            return False
        ids = choice.get("token_ids") or []
        if not isinstance(ids, list):
            self._fail(DIFFERS)
        self._position += len(ids)
        behind = min(len(ids), self._position - expected.shown)
        has, replayed, has_rest = self._has, self._replayed, False
        for holder, name, text in _texts_of(choice):
            known = text[: has.length(name) - replayed.length(name)]
            replayed.add(name, known)
            holder[name] = text[len(known) :]
            has_rest = has_rest or len(known) < len(text)
        is_finish = choice.get("finish_reason") is not None
        has_logprobs = choice.get("logprobs") is not None
        is_more = has_rest or is_finish or _has_call(choice)
        if behind < 0 or not replayed.is_as_long_as(has):
            if is_more or (behind > 0 and (has_logprobs or not self._strips)):
                self._fail(DIFFERS)
            return False
        if not replayed.is_same(has):
            self._fail(DIFFERS)
        if has_logprobs and not _has_cut(choice["logprobs"], len(ids), behind):
            self._fail(WITHIN_LOGPROBS)
        choice["token_ids"] = ids[len(ids) - behind :]
        self._catch_up(expected)
        return is_more or (behind > 0 and (has_logprobs or not self._strips))

    def _catch_up(self, expected: SentTokens) -> None:
        expected.release()
        self._expected = None
        self.silent_since = None
        if self.on_caught_up is not None:
            on_caught_up, self.on_caught_up = self.on_caught_up, None
            on_caught_up()

    def _note(self, fields: dict[str, Any]) -> None:
        choice = only_choice(fields)
        if choice is not None:
            for _, name, text in _texts_of(choice):
                self._has.add(name, text)

    def _hide_tokens(self, fields: dict[str, Any]) -> None:
        choice = only_choice(fields)
        if self._strips and choice is not None and "token_ids" in choice:
            choice["token_ids"] = None


class SentSums:
    """The lengths and checksums of an answer's texts, by the name of their field.

    Why a checksum: the tokens are compared, too. It finds what parsers make of them otherwise.
    """

    __slots__ = ("_lengths", "_sums")

    def __init__(self) -> None:
        self._lengths: dict[str, int] = {}
        self._sums: dict[str, int] = {}

    def length(self, name: str) -> int:
        return self._lengths.get(name, 0)

    def add(self, name: str, text: str) -> None:
        """Adds characters to a text."""
        if text:
            self._lengths[name] = self.length(name) + len(text)
            self._sums[name] = zlib.crc32(text.encode(), self._sums.get(name, 0))

    def is_as_long_as(self, other: "SentSums") -> bool:
        return self._lengths == other._lengths

    def is_same(self, other: "SentSums") -> bool:
        return self._lengths == other._lengths and self._sums == other._sums


def _has_cut(logprobs: Any, count: int, behind: int) -> bool:
    """Leaves the log probabilities of an event's last tokens; returns whether it has them by token.

    count, behind: the tokens of the event, and those that are left.
    """
    lists = {name: value for name, value in logprobs.items() if value is not None} if isinstance(logprobs, dict) else {}
    if not lists or any(not isinstance(value, list) or len(value) != count for value in lists.values()):
        return False
    for name, value in lists.items():
        logprobs[name] = value[count - behind :]
    return True


def _has_call(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    return isinstance(delta, dict) and bool(delta.get("tool_calls"))


def _texts_of(choice: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yields the texts in an event, each with the object that holds it and its name."""
    delta = choice.get("delta")
    holder = delta if isinstance(delta, dict) else choice
    for name in _TEXTS:
        text = holder.get(name)
        if isinstance(text, str) and text:
            yield holder, name, text
