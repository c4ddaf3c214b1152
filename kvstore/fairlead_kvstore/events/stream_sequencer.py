"""One stream of KV events (engine × rank), kept unbroken: a pure state machine from frames to
outcomes.

An engine numbers its batches and reports neither start nor end. ZeroMQ drops silently above its
high-water mark. A restarted engine begins at 0 again under the same address, and a late reader has
missed everything before. An index that overlooks one of these lists blocks that are no longer
cached (ghosts), or misses those that are. So every frame gets one outcome:

    in order            AcceptBatch
    already read        DuplicateBatch      same number *and* bytes as one of the last batches
    number too high     SequenceGap         request a replay; frames meanwhile are buffered
    number too low      ProcessRestarted    same number, other bytes: another process
    replay too short    BatchesLost         missing batches never come; drop and relearn
    first of all        StreamComplete      every batch since the engine's start is known

**A replay proves the identity of the process.** It is always requested from the last accepted
batch, not from the next one. When the answer begins with that very batch, byte for byte, it is the
same process with the same history, and the missing ones follow. Another batch under that number, or
no answer, is another process, even when its numbers happen to fit. The same proof serves after a
broken connection: the stream is only *suspended* until one of the two is proved. A short network
failure costs nothing, and a restarted engine's blocks are dropped at once.

**A replay may have holes**: an engine sends it as fast as it can and drops what its socket has no
room for. Measured with vLLM: 320 of 2,399 batches. Batches after a hole are left out. When the
replay is over, the rest is requested again from the last batch before the hole, and so is a missing
end. As long as each replay brings a new batch, nothing is lost.

**First numbers**: vLLM and SGLang begin at 0, llm-d-inference-sim at 1. So a replay from 0 that
begins at 1 is whole if it is shorter than the engine's buffer (10,000 batches by default). One that
begins later means that the buffer no longer reaches back.

Framing (``parse_frame``, ``parse_replay_frame``): a subscriber receives ``[topic, number,
payload]``, with the number as 8 bytes big-endian. A DEALER that sends ``[b"", number]`` receives
one message per batch, ``[b"", topic, number, payload]``, and at the end ``[b"", b"", ff × 8,
b""]``. Before 0.26, vLLM leaves the topic out. A REQ socket receives only the first message, so it
cannot be used.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

import xxhash

from fairlead.limits import Limits
from fairlead_kvstore.errors import MalformedEvents
from fairlead_kvstore.events.types import (
    AcceptBatch,
    BatchesLost,
    DuplicateBatch,
    EventFrame,
    ProcessRestarted,
    SequenceGap,
    StreamComplete,
    StreamOutcome,
    StreamPosition,
    StreamResumed,
    StreamSuspended,
)

KV_REPLAY_BATCHES: Final = 131_072
"""Limit: batches of one replay whose digests are kept until it ends; vLLM's buffer has 10,000 by
default.
"""

_LIMITS: Final = Limits()
_NUMBER_BYTES: Final = 8
_END_OF_REPLAY: Final = b"\xff" * _NUMBER_BYTES
_MAX_FIRST_NUMBER: Final = 1
"""The highest number that a stream may begin with."""
_FRAME_BYTES: Final = 64  # the fixed cost of a buffered frame
_MAX_KNOWN_BEHIND: Final = 16_384  # digests, 1.7 MB, while live frames may repeat what a replay brought
_DEFAULT_BUFFER: Final = 10_000
"""The default of vLLM."""


def parse_frame(parts: Sequence[bytes]) -> EventFrame:
    """Returns the batch in a subscriber's message. Raises MalformedEvents unless ``parts`` are
    topic, number and payload. No batch has the number that ends a replay.
    """
    if len(parts) != 3 or len(parts[1]) != _NUMBER_BYTES or parts[1] == _END_OF_REPLAY:
        hint = "subscribe to the engine's KV events, not to another of its sockets"
        raise MalformedEvents(
            f"a message of {len(parts)} frames is not [topic, number, payload]", reason="frame", hint=hint
        )
    return EventFrame(int.from_bytes(parts[1], "big"), parts[2])


def parse_replay_frame(parts: Sequence[bytes]) -> EventFrame | None:
    """Returns the batch in one message of a replay; None for the message that ends it. Raises
    MalformedEvents for anything else.
    """
    inner = parts[1:] if parts and not parts[0] else parts
    rest = inner[1:] if len(inner) == 3 else inner  # without the topic, which older engines leave out
    if len(rest) != 2 or len(rest[0]) != _NUMBER_BYTES:
        hint = "request the replay with [empty, number] from a DEALER socket"
        raise MalformedEvents(f"a message of {len(parts)} frames is not part of a replay", reason="frame", hint=hint)
    return None if rest[0] == _END_OF_REPLAY else EventFrame(int.from_bytes(rest[0], "big"), rest[1])


def replay_request(start: int) -> list[bytes]:
    return [b"", start.to_bytes(_NUMBER_BYTES, "big")]


class EventSequencer:
    """The state of one stream of KV events. Methods that receive something return its outcomes.

    replayable: whether the engine has a replay endpoint.
    buffer: the number of batches that the endpoint keeps (``buffer_steps`` in vLLM's
    ``/kv_event_sources``).
    position: an earlier indexer's position; a replay must still prove that the process is the same.

    next_number: the number of the next batch; None before the first.
    is_replaying: frames are buffered until a replay ends or ``on_replay_failed`` is called.
    is_draining: the replay is over; the caller has to call ``on_drain``, which takes the buffered
    frames.
    held_bytes: the bytes of the payloads of buffered frames.
    """

    def __init__(
        self,
        *,
        replayable: bool,
        buffer: int = _DEFAULT_BUFFER,
        limits: Limits = _LIMITS,
        position: StreamPosition | None = None,
    ) -> None:
        self._replayable = replayable
        self._buffer = buffer
        self._limits = limits
        self.next_number: int | None = None
        self._known: dict[int, int] = {}
        self._held_frames: deque[tuple[EventFrame, bool]] = deque()  # and whether its number was above the one before
        self.held_bytes = 0
        self.is_draining = False
        self._drain_reason = ""
        self._last_live = -1
        self._is_live_behind = False  # live frames may still repeat what a replay brought
        self._was_live_behind = False  # the same at the last ``on_interval``
        self._replay_first: int | None = None
        self._replayed = 0
        self._replay_is_gapless = False  # the replay was requested from 0 and has no hole
        self.is_replaying = False
        self._identity_unproven = False  # the replay must begin with the last accepted batch
        self._is_suspended = False
        self._replay_made_progress = False  # the replay has brought a new batch
        self._replay_has_hole = False  # and then left batches out
        self._replayed_from_start = False  # a replay from the start was requested and is over
        if position is not None and position.known and position.following == position.known[-1][0] + 1:
            self.next_number, self._known, self._is_suspended = position.following, dict(position.known), True

    @property
    def position(self) -> StreamPosition | None:
        """The position from which the next indexer continues; None before the first batch."""
        if self.next_number is None:
            return None
        known = list(self._known.items())[-self._limits.kv_sequences_known :]
        return StreamPosition(self.next_number, known)

    def on_connected(self) -> list[StreamOutcome]:
        """Handles a new connection; may request a replay, or begin an epoch if it cannot."""
        if self.is_replaying:
            return []
        if self.next_number is None:
            return [self._request_replay(0, None)] if self._replayable and not self._replayed_from_start else []
        if self._replayable:
            self._is_suspended = True
            return [self._request_replay(self.next_number, None)]
        return self._restart("connected again, and no replay can prove that it is the same process")

    def on_interval(self, *, is_quiet: bool) -> list[StreamOutcome]:
        """Requests a replay after an interval without messages: an event may have been missed.

        The replay shows batches published before the engine knew of its new listener, batches
        dropped last, and a process that took over unnoticed. Without an answer nothing changes.

        Forgets digests of a replay if live frames were behind it at the last call too.
        """
        if self.is_replaying or self.is_draining:
            return []
        requests = is_quiet and self._replayable and not self._is_suspended
        if requests or (self._is_live_behind and self._was_live_behind):
            self._is_live_behind = False
            self._trim(self._limits.kv_sequences_known)
        self._was_live_behind = self._is_live_behind
        return [self._request_replay(self.next_number or 0, None)] if requests else []

    def on_disconnected(self) -> list[StreamOutcome]:
        """Suspends the stream. The caller decides how long to wait before it calls
        ``on_replaced``.
        """
        self._forget_replay()
        if self._is_suspended or self.next_number is None:
            return []
        self._is_suspended = True
        return [StreamSuspended("disconnected")]

    def on_replaced(self, reason: str) -> list[StreamOutcome]:
        """Begins a new epoch, because something else proves another process: the pod's UID, its
        start time, or no message for too long.
        """
        self._forget_replay()
        return self._restart(reason)

    def on_live_frames(self, frames: Sequence[EventFrame]) -> list[StreamOutcome]:
        """Handles frames of the subscription, most of them in order."""
        outcomes: list[StreamOutcome] = []
        for frame in frames:
            number = frame.number
            if number != self.next_number or self.is_replaying or self.is_draining or self._is_suspended:
                outcomes += self.on_live_frame(frame)
            else:
                self._last_live = number
                outcomes.append(self._accept(frame))
        return outcomes

    def on_live_frame(self, frame: EventFrame) -> list[StreamOutcome]:
        """Handles a frame of the subscription; during a replay or a drain, it is buffered."""
        outcomes: list[StreamOutcome] = self.on_connected() if self._is_suspended else []
        forward, self._last_live = frame.number > self._last_live, frame.number
        if not self.is_replaying and not self.is_draining:
            return outcomes + self._take(frame)
        self._hold(frame, forward)
        limits = self._limits
        if len(self._held_frames) <= limits.kv_replay_buffered and self.held_bytes <= limits.kv_replay_buffered_bytes:
            return outcomes
        if self.is_draining:
            outcomes += self.on_drain(max(1, len(frame.payload)))  # as much as came
        else:
            outcomes += self._give_up("too much arrived before the replay ended")
        return outcomes

    def on_replayed_frame(self, frame: EventFrame | None) -> list[StreamOutcome]:
        """Handles a batch of the last requested replay, not of an earlier one; None at its end."""
        if not self.is_replaying:
            return [] if frame is None else [DuplicateBatch(frame.number)]
        if frame is None:
            return self._on_replay_end()
        if self._replay_first is None:
            self._replay_first = frame.number
        self._replayed += 1
        if self._identity_unproven:
            return self._check_identity(frame)
        expected = self.next_number
        if expected is None:
            self._replay_made_progress = True
            first = self._first_outcomes(frame.number, "the replay starts later than requested")
            return [*first, self._accept(frame)]
        if frame.number < expected:
            return [DuplicateBatch(frame.number)]
        if frame.number > expected:
            if self._replay_made_progress:
                self._replay_has_hole = True
                return [DuplicateBatch(frame.number)]  # to be replayed again
            self._replay_is_gapless = False
            lost = BatchesLost(expected, frame.number - 1, "the replay has a hole")
            return [lost, self._accept(frame)]
        self._replay_made_progress = True
        return [self._accept(frame)]

    def on_replay_failed(self, reason: str, *, is_cut: bool = False) -> list[StreamOutcome]:
        """Handles a replay that failed before its end.

        is_cut: the rest of it was dropped here, and can be requested.
        """
        has_rest = self._replay_has_hole or (is_cut and self._replay_made_progress)
        if self.is_replaying and has_rest:  # its end may have been left out too
            return [self._request_rest()]
        return self._give_up(reason) if self.is_replaying else []

    def on_drain(self, max_bytes: int) -> list[StreamOutcome]:
        """Takes buffered frames of about ``max_bytes``, in the order in which they came.

        Call it while ``is_draining``. The position follows each frame, so other work is possible
        between two calls.
        """
        frames, self._held_frames = self._held_frames, deque()
        outcomes: list[StreamOutcome] = []
        used = 0
        while frames and used < max_bytes and not self.is_replaying:  # replaying: one of them proved a restart
            frame, forward = frames.popleft()
            used += len(frame.payload) + _FRAME_BYTES
            self.held_bytes -= len(frame.payload)
            outcomes += self._take_held(frame, forward)
        frames.extendleft(reversed(self._held_frames))
        self._held_frames = frames
        self.is_draining = bool(self._held_frames) and not self.is_replaying
        if not (self.is_replaying or self.is_draining or self._is_live_behind):
            self._trim(self._limits.kv_sequences_known)
        return outcomes

    # --- one frame ------------------------------------------------------------------------------------------------------

    def _take(self, frame: EventFrame) -> list[StreamOutcome]:
        expected, number = self.next_number, frame.number
        if number == expected:
            return [self._accept(frame)]
        if expected is None:
            if number and self._replayable and not self._replayed_from_start:
                return [self._hold_and_request(frame, 0)]
            return [*self._first_outcomes(number, "nothing can be replayed"), self._accept(frame)]
        if number > expected:
            if self._replayable:
                return [self._hold_and_request(frame, expected)]
            return [BatchesLost(expected, number - 1, "nothing can be replayed"), self._accept(frame)]
        if self._known.get(number) == _digest(frame):
            return [DuplicateBatch(number)]
        return [*self._restart("the numbers went back"), *self._take(frame)]

    def _accept(self, frame: EventFrame) -> AcceptBatch:
        number, known = frame.number, self._known
        self.next_number = number + 1
        known[number] = _digest(frame)
        self._is_live_behind = self._is_live_behind and self._last_live < number
        # Live frames are compared with replayed ones, so a replay needs more digests.
        max_known = self._limits.kv_sequences_known
        if self.is_replaying:
            max_known = KV_REPLAY_BATCHES
        elif self._held_frames or self._is_live_behind:
            max_known = _MAX_KNOWN_BEHIND
        if len(known) > max_known:
            self._trim(max_known)
        return AcceptBatch(number, frame.payload)

    def _first_outcomes(self, number: int, reason: str) -> list[StreamOutcome]:
        """Returns the outcome of a stream's first number: ``StreamComplete`` or ``BatchesLost``."""
        if number == 0:
            return [StreamComplete("the first batch that the engine published")]
        return [BatchesLost(0, number - 1, reason)]

    def _restart(self, reason: str) -> list[StreamOutcome]:
        self.next_number = None
        self._known.clear()
        self._is_suspended = self._identity_unproven = self._replayed_from_start = self._is_live_behind = False
        self._replay_first = None
        return [ProcessRestarted(reason)]

    # --- replay ---------------------------------------------------------------------------------------------------------

    def _hold_and_request(self, frame: EventFrame, first: int) -> SequenceGap:
        self._hold(frame, True)
        return self._request_replay(first, frame.number - 1)

    def _hold(self, frame: EventFrame, forward: bool) -> None:
        self._held_frames.append((frame, forward))
        self.held_bytes += len(frame.payload)

    def _request_replay(self, first: int, last: int | None) -> SequenceGap:
        self.is_replaying, self._replay_first, self._replayed = True, None, 0
        self._identity_unproven = self.next_number is not None
        self._replay_is_gapless = self.next_number is None
        self._replay_made_progress = self._replay_has_hole = False
        return SequenceGap(first, last, first - 1 if self._identity_unproven else first)

    def _request_rest(self) -> SequenceGap:
        """Returns the request for the rest of a replay that had a hole."""
        assert self.next_number is not None
        self._identity_unproven, self._replay_made_progress, self._replay_has_hole = True, False, False
        self._replayed -= 1  # the last batch before the hole will come once more
        return SequenceGap(self.next_number, None, self.next_number - 1)

    def _falls_short(self) -> bool:
        """Returns whether batches are missing between the replay and the buffered frames."""
        assert self.next_number is not None
        later = [frame.number for frame, _ in self._held_frames if frame.number >= self.next_number]
        return bool(later) and min(later) > self.next_number

    def _check_identity(self, frame: EventFrame) -> list[StreamOutcome]:
        """Handles the first batch of a replay, which shows whether the process is the same."""
        expected = self.next_number
        assert expected is not None
        self._identity_unproven = False
        if frame.number == expected - 1 and self._known.get(frame.number) == _digest(frame):
            was_suspended, self._is_suspended = self._is_suspended, False
            return [StreamResumed()] if was_suspended else []
        if frame.number < expected or self._is_suspended:
            # Another process, and the rest of this replay begins in its middle: request it again.
            outcomes = self._restart("the replay has another history")
            if not frame.number:
                return [*outcomes, *self._first_outcomes(frame.number, "joined late"), self._accept(frame)]
            return [*outcomes, self._request_replay(0, None)]
        # The connection never broke, so it is the same process; its buffer begins later.
        if frame.number == expected:
            return [self._accept(frame)]
        lost = BatchesLost(expected, frame.number - 1, "the replay starts later than requested")
        return [lost, self._accept(frame)]

    def _on_replay_end(self) -> list[StreamOutcome]:
        if self._replay_has_hole or (self._replay_made_progress and self._falls_short()):
            return [self._request_rest()]
        self.is_replaying = False
        self._check_live_position()
        outcomes: list[StreamOutcome] = []
        if self._identity_unproven:
            outcomes = self._restart("the replay does not contain the last accepted batch")
            if self._held_frames:
                return [*outcomes, self._request_replay(0, None)]
        first = self._replay_first
        # An engine that had published nothing may get another request.
        self._replayed_from_start = first is not None or bool(self._held_frames)
        if self._replay_is_gapless and first == _MAX_FIRST_NUMBER and self._replayed < self._buffer:
            outcomes.append(StreamComplete(f"its numbers begin at {first}, and its buffer is not full"))
        return outcomes + self._drain("the replay did not contain them")

    def _give_up(self, reason: str) -> list[StreamOutcome]:
        """Ends the replay unfinished and takes the buffered frames; a suspended stream restarts."""
        self.is_replaying = False
        self._check_live_position()
        outcomes: list[StreamOutcome] = self._restart(reason) if self._is_suspended else []
        self._identity_unproven = False
        self._replayed_from_start = True
        return outcomes + self._drain(reason)

    def _check_live_position(self) -> None:
        """Records at the end of a replay whether live frames may repeat what it brought.

        Why: the frames of a busy engine wait in sockets meanwhile, and may be thousands of batches
        older than the end of the replay. Without their digests they would look like a restart.
        """
        last = None if self.next_number is None else self.next_number - 1
        self._is_live_behind = self._replay_made_progress and self._last_live != last
        self._was_live_behind = False
        self._trim(_MAX_KNOWN_BEHIND)

    def _drain(self, reason: str) -> list[StreamOutcome]:
        self._drain_reason = reason
        return self.on_drain(self._limits.kv_turn_bytes)

    def _take_held(self, frame: EventFrame, forward: bool) -> list[StreamOutcome]:
        expected = self.next_number
        if expected is None:
            first = self._first_outcomes(frame.number, self._drain_reason)
            return [*first, self._accept(frame)]
        if frame.number > expected:
            lost = BatchesLost(expected, frame.number - 1, self._drain_reason)
            return [lost, self._accept(frame)]
        if forward and frame.number < (self._replay_first or 0):
            return [DuplicateBatch(frame.number)]  # older than the replay, and lost
        return self._take(frame)

    def _trim(self, max_known: int) -> None:
        known = self._known
        while len(known) > max_known:
            del known[next(iter(known))]

    def _forget_replay(self) -> None:
        self.is_replaying = self._identity_unproven = self._replayed_from_start = self._is_live_behind = False
        self._held_frames.clear()
        self.held_bytes, self.is_draining = 0, False


def _digest(frame: EventFrame) -> int:
    return xxhash.xxh3_64_intdigest(frame.payload)
