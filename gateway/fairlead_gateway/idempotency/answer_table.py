"""The answers of one worker under idempotency keys, by caller. Pure: time is an argument.

An answer is recorded while it runs and kept for a window after its end. It is lost before that if
it grows too long, if memory is short, or if it failed. Of a lost answer only the reason is left, so
that a repeated request is counted by it.

Why each caller has its own answers: keys of two callers never meet, and memory is taken from the
caller with the most.
"""

import re
from abc import abstractmethod
from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.errors import BadRequest, IdempotencyKeyReused

HEADER: Final = b"idempotency-key"
TOO_LONG: Final = "too-long"
MEMORY: Final = "memory"
FAILED: Final = "failed"
ABANDONED: Final = "abandoned"
"""Why the answer of a request with a known key is not kept."""
_KEY: Final = re.compile(rb"[\x20-\x7e]+")
_ANSWER_OVERHEAD: Final = 1_024  # bytes of an answer besides its content, its key among them
_CHUNK_OVERHEAD: Final = 48
_BLOCK_BYTES: Final = 65_536
_MAX_EXPIRED: Final = 256  # answers that are forgotten at once
_RETRIED_STATUSES: Final = frozenset({408, 409, 429})  # SDKs send these requests again


def check_key(values: list[bytes], max_bytes: int) -> bytes:
    """Returns the key of a request.

    values: of all fields `Idempotency-Key`. Raises BadRequest unless there is one valid value.
    """
    if len(values) != 1:
        message = "Idempotency-Key: the header is given more than once"
    elif len(values[0]) > max_bytes:
        message = f"Idempotency-Key: the key is longer than {max_bytes} characters"
    elif _KEY.fullmatch(values[0]) is None:
        message = "Idempotency-Key: the key is empty, or not printable ASCII"
    else:
        return values[0]
    raise BadRequest(message, param="idempotency-key", code="invalid_idempotency_key", hint="send a UUID as the key")


class AnswerHead:
    """The head of an answer, without what belongs to the connection of one client.

    length: of the body, if it is known before; None: it ends with the last chunk.
    is_event_stream: comments may be written between two chunks.
    """

    __slots__ = ("content_type", "header_text", "is_event_stream", "length", "request_id", "status")

    def __init__(
        self, status: int, header_text: str, request_id: str, *, content_type: str = "", length: int | None = None
    ) -> None:
        self.status = status
        self.header_text = header_text
        self.request_id = request_id
        self.content_type = content_type
        self.length = length
        self.is_event_stream = False


class AnswerReader:
    """A client of an answer.

    position: the number of chunks that it has.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    __slots__ = ("position",)

    def __init__(self) -> None:
        self.position = 0

    @abstractmethod
    def on_changed(self) -> None:
        """Called when the answer has grown or ended."""


class KeyedAnswer:
    """The answer to the first request with a key, as far as it is known.

    fingerprint: of the request; another one under the same key is refused.
    head: None before the answer starts.
    chunks: of the body, without the first `forgotten_chunks`.
    size: bytes that count in memory.
    lost: why the answer is not kept; empty while it is.
    ended_at: None while it runs.
    is_cut: it ended before it was complete.
    """

    __slots__ = (
        "caller",
        "chunks",
        "ended_at",
        "fingerprint",
        "forgotten_chunks",
        "head",
        "is_complete",
        "is_cut",
        "key",
        "lost",
        "readers",
        "recorded_bytes",
        "size",
    )

    def __init__(self, caller: CallerKey, key: bytes, fingerprint: bytes) -> None:
        self.caller = caller
        self.key = key
        self.fingerprint = fingerprint
        self.head: AnswerHead | None = None
        self.chunks: list[bytes] = []
        self.forgotten_chunks = 0
        self.readers: list[AnswerReader] = []
        self.recorded_bytes = 0
        self.size = 0
        self.lost = ""
        self.ended_at: float | None = None
        self.is_complete = self.is_cut = False

    @property
    def is_running(self) -> bool:
        return not self.is_complete and not self.is_cut

    def unread_chunks(self, position: int) -> list[bytes]:
        return self.chunks[position - self.forgotten_chunks :]

    def trim(self) -> None:
        """Forgets the chunks that all readers have, once the answer is lost."""
        if not self.lost:
            return
        end = self.forgotten_chunks + len(self.chunks)
        before = min([reader.position for reader in self.readers], default=end)
        if before > self.forgotten_chunks:
            del self.chunks[: before - self.forgotten_chunks]
            self.forgotten_chunks = before

    def notify(self) -> None:
        """Lets all readers read on."""
        for reader in list(self.readers):
            reader.on_changed()
        self.trim()


class _CallerAnswers:
    """The answers of one caller, in the order of their start.

    ended: those that have ended, oldest end first.
    """

    __slots__ = ("by_key", "ended", "size")

    def __init__(self) -> None:
        self.by_key: dict[bytes, KeyedAnswer] = {}
        self.ended: dict[KeyedAnswer, None] = {}
        self.size = 0


class AnswerTable:
    """The answers of all callers.

    size: bytes of all of them.
    """

    def __init__(self, limits: Limits) -> None:
        self._window_seconds: float = limits.idempotency_window_seconds
        self._max_answer_bytes: int = limits.idempotency_answer_bytes
        self._max_bytes: int = limits.idempotency_bytes
        self._callers: dict[CallerKey, _CallerAnswers] = {}
        self._ended: dict[KeyedAnswer, None] = {}  # oldest end first
        self.size = 0

    def __len__(self) -> int:
        return sum([len(answers.by_key) for answers in self._callers.values()])

    def has(self, caller: CallerKey, key: bytes) -> bool:
        answers = self._callers.get(caller)
        return answers is not None and key in answers.by_key

    def find(self, caller: CallerKey, key: bytes, fingerprint: bytes, now: float) -> KeyedAnswer | None:
        """Returns the answer under a key, which may be lost; None for a new key.

        Raises IdempotencyKeyReused if another request has the key.
        """
        self.expire(now)
        answers = self._callers.get(caller)
        answer = None if answers is None else answers.by_key.get(key)
        if answer is not None and self._is_expired(answer, now):
            self._remove(answer)
            return None
        if answer is not None and answer.fingerprint != fingerprint:
            raise IdempotencyKeyReused
        return answer

    def start(self, caller: CallerKey, key: bytes, fingerprint: bytes) -> KeyedAnswer:
        """Returns the empty answer of a request that starts now. It replaces a lost one."""
        answers = self._callers.get(caller)
        previous = None if answers is None else answers.by_key.get(key)
        if previous is not None:
            self._remove(previous)
        answers = self._callers.setdefault(caller, _CallerAnswers())
        answer = answers.by_key[key] = KeyedAnswer(caller, key, fingerprint)
        self._resize(answer, _ANSWER_OVERHEAD)
        self._make_room(answer)
        return answer

    def add(self, answer: KeyedAnswer, chunks: list[bytes]) -> None:
        """Adds chunks to a running answer, which is lost if it becomes too long."""
        answer.chunks += chunks
        if answer.lost:
            return
        size = sum([len(chunk) for chunk in chunks])
        answer.recorded_bytes += size
        self._resize(answer, size + _CHUNK_OVERHEAD * len(chunks))
        if answer.recorded_bytes > self._max_answer_bytes:
            self.lose(answer, TOO_LONG)
        else:
            self._make_room(answer)

    def end(self, answer: KeyedAnswer, now: float, *, has_failed: bool = False) -> None:
        """Ends an answer. It is kept unless it is lost, cut, or one to send again for."""
        if answer.ended_at is not None:
            return
        answer.ended_at = now
        answer.is_complete = not answer.is_cut
        status = answer.head.status if answer.head is not None else 0
        if answer.is_cut or has_failed or status >= 500 or status in _RETRIED_STATUSES:
            self.lose(answer, FAILED)
        if self._is_listed(answer):
            self._ended[answer] = self._callers[answer.caller].ended[answer] = None

    def lose(self, answer: KeyedAnswer, reason: str) -> None:
        """Keeps no more than the reason of an answer. Readers of its chunks go on."""
        if answer.lost:
            return
        answer.lost = reason
        answer.trim()
        if self._is_listed(answer):
            self._resize(answer, _ANSWER_OVERHEAD - answer.size)

    def compact(self, answer: KeyedAnswer) -> None:
        """Joins the chunks of an ended answer that all readers have, since objects cost memory."""
        if not answer.lost and {reader.position for reader in answer.readers} <= {len(answer.chunks)}:
            before = len(answer.chunks)
            answer.chunks = _join_blocks(answer.chunks)
            self._resize(answer, _CHUNK_OVERHEAD * (len(answer.chunks) - before))
            for reader in answer.readers:
                reader.position = len(answer.chunks)

    def expire(self, now: float) -> bool:
        """Forgets some that ended longer than the window ago; returns whether there may be more."""
        for _ in range(_MAX_EXPIRED):
            oldest = next(iter(self._ended), None)
            if oldest is None or not self._is_expired(oldest, now):
                return False
            self._remove(oldest)
        return True

    def _is_expired(self, answer: KeyedAnswer, now: float) -> bool:
        return answer.ended_at is not None and now - answer.ended_at >= self._window_seconds

    def _make_room(self, growing: KeyedAnswer) -> None:
        """Loses ended answers of the caller with most bytes; if it has none, the one that grows."""
        while self.size > self._max_bytes:
            largest = max(self._callers.values(), key=_size_of)
            victim = next(iter(largest.ended), None)
            if victim is None:
                self.lose(growing, MEMORY)
                return
            if victim.lost:
                self._remove(victim)
            else:
                self.lose(victim, MEMORY)

    def _remove(self, answer: KeyedAnswer) -> None:
        self._ended.pop(answer, None)
        answers = self._callers[answer.caller]
        answers.ended.pop(answer, None)
        self._resize(answer, -answer.size)
        del answers.by_key[answer.key]
        if not answers.by_key:
            del self._callers[answer.caller]

    def _is_listed(self, answer: KeyedAnswer) -> bool:
        answers = self._callers.get(answer.caller)
        return answers is not None and answers.by_key.get(answer.key) is answer

    def _resize(self, answer: KeyedAnswer, change: int) -> None:
        answer.size += change
        self.size += change
        self._callers[answer.caller].size += change


def _size_of(answers: _CallerAnswers) -> int:
    return answers.size


def _join_blocks(chunks: list[bytes]) -> list[bytes]:
    """Returns the chunks joined to blocks."""
    blocks: list[bytes] = []
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size >= _BLOCK_BYTES:
            blocks.append(b"".join(parts))
            parts, size = [], 0
    if parts:
        blocks.append(b"".join(parts))
    return blocks
