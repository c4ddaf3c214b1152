"""One stream of KV events, engine × rank, kept unbroken: a pure state machine from frames to what they mean.

An engine numbers its batches and says neither hello nor goodbye. ZeroMQ drops silently beyond its high-water mark, an engine
that was restarted begins at 0 again under the same address, and who connects late has missed everything before. An index
that overlooks one of these credits blocks that are gone (ghosts) or is blind to those that are there. So every frame gets
one answer, with its reason:

    in order            Accept
    seen already        Duplicate       same number *and* same bytes as one of the last batches
    number too high     Gap             ask for a replay; what arrives meanwhile is held back
    number too low      Restart         same number but other bytes: another process is speaking
    replay falls short  Lost            what lies between will never come; the slice must be learned anew
    first of all        Complete        from here on everything since the engine's start was seen

**A replay proves who speaks.** It is always asked from the last batch that was accepted, not from the next one: when the answer
begins with that very batch, byte for byte, it is the same process with the same history, and the missing ones follow. Another
batch under that number, or no answer, is another process, even when its numbers happen to fit. The same proof serves after a
broken connection, where the stream is only *suspended* until it is known which of the two happened: a network that blinked costs
nothing, and a restarted engine's blocks are gone at once.

**A replay may have holes**: an engine sends it as fast as it can and drops what its socket has no room for (a real vLLM: 320 of 2,399
batches). What comes behind a hole is left, and once the replay is over the rest is asked for anew, from the last batch before the
hole; so is what is missing at its end. As long as each replay brings something new, nothing is lost.

**Where numbers start**: vLLM and SGLang at 0, llm-d-inference-sim at 1. A replay asked from 0 that begins at 1 is therefore
whole if it brings less than the engine's buffer holds (10,000 batches by default); one that begins later means that the buffer
no longer reaches back.

Framing (``parse_frame``, ``parse_replay``): a subscriber gets ``[topic, number, payload]``, number as 8 bytes big-endian. A
DEALER that sends ``[b"", number]`` gets one message per batch, ``[b"", topic, number, payload]``, and at the end ``[b"", b"",
ff × 8, b""]``; vLLM before 0.26 leaves the topic out. A REQ socket would only see the first, so it is no use.
"""

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

_LIMITS: Final = Limits()
_NUMBER_BYTES: Final = 8
_END_OF_REPLAY: Final = b"\xff" * _NUMBER_BYTES
_MAX_FIRST_NUMBER: Final = 1
"""The highest number that a stream may begin with."""
_DEFAULT_BUFFER: Final = 10_000
"""What vLLM keeps by default."""


def parse_frame(parts: Sequence[bytes]) -> EventFrame:
    """What a subscriber received. Raises Malformed for anything else than topic, number and payload."""
    if len(parts) != 3 or len(parts[1]) != _NUMBER_BYTES:
        hint = "subscribe to the engine's KV events, not to another of its sockets"
        raise MalformedEvents(f"{len(parts)} frames are no [topic, number, payload]", reason="frame", hint=hint)
    return EventFrame(parts[0], int.from_bytes(parts[1], "big"), parts[2])


def parse_replay_frame(parts: Sequence[bytes]) -> EventFrame | None:
    """One message of a replay; None is its end. Raises Malformed for what is neither."""
    inner = parts[1:] if parts and not parts[0] else parts
    topic, rest = (inner[0], inner[1:]) if len(inner) == 3 else (b"", inner)
    if len(rest) != 2 or len(rest[0]) != _NUMBER_BYTES:
        hint = "ask a DEALER with [empty, number]"
        raise MalformedEvents(f"{len(parts)} frames are no part of a replay", reason="frame", hint=hint)
    return None if rest[0] == _END_OF_REPLAY else EventFrame(topic, int.from_bytes(rest[0], "big"), rest[1])


def replay_request(start: int) -> list[bytes]:
    """What a DEALER sends to get everything from ``start`` on."""
    return [b"", start.to_bytes(_NUMBER_BYTES, "big")]


class EventSequencer:
    """The state of one stream. Every method returns what to do, in order.

    ``replayable``: the engine has a replay endpoint, which keeps the last ``buffer`` batches (``buffer_steps`` of vLLM's
    ``/kv_event_sources``). ``position``: where an earlier indexer was; whether it is the same process is still to be proven.
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
        self._next_number: int | None = None
        self._known: dict[int, int] = {}
        self._held_frames: list[tuple[EventFrame, bool]] = []  # and whether its number was higher than the one before
        self._held_bytes = 0
        self._last_live = -1
        self._replay_first: int | None = None
        self._replayed = 0
        self._replay_is_gapless = False  # the replay was asked from 0, and has no hole
        self._is_replaying = False
        self._identity_unproven = False  # the replay's first answer must be the last batch that was accepted
        self._is_suspended = False
        self._replay_made_progress = False  # the replay has brought something new
        self._replay_has_hole = False  # and then left something out
        self._replayed_from_start = False  # a replay from the start was asked for, and is over
        self._stale_replay_ends = 0  # replays whose answers nobody waits for any more
        if position is not None and position.known and position.following == position.known[-1][0] + 1:
            self._next_number, self._known, self._is_suspended = position.following, dict(position.known), True

    @property
    def next_number(self) -> int | None:
        """The number that comes next; None before the first."""
        return self._next_number

    @property
    def position(self) -> StreamPosition | None:
        """What the next indexer needs to go on from here; None before the first batch."""
        if self._next_number is None:
            return None
        known = list(self._known.items())[-self._limits.kv_sequences_known :]
        return StreamPosition(self._next_number, known)

    @property
    def is_replaying(self) -> bool:
        """Whether frames are held back until a replay ends or ``replay_failed`` is called."""
        return self._is_replaying

    @property
    def held_frames(self) -> int:
        """Frames held back."""
        return len(self._held_frames)

    def on_connected(self) -> list[StreamOutcome]:
        """The subscription stands, for the first time or again."""
        if self._is_replaying:
            return []
        if self._next_number is None:
            return (
                [self._request_replay(0, None, "joined late")]
                if self._replayable and not self._replayed_from_start
                else []
            )
        if self._replayable:
            self._is_suspended = True
            return [self._request_replay(self._next_number, None, "connected again")]
        return self._restart("connected again, and nothing can be replayed to tell whether it is the same process")

    def on_quiet(self) -> list[StreamOutcome]:
        """Nothing came for a while. Nobody says whether that is so because nothing was published, so the engine is asked.

        What was published before the engine knew of a new listener, or dropped last, is seen only now, as is a process that took
        over unnoticed. Where no answer comes nothing is known either, and nothing changes.
        """
        if self._is_replaying or self._is_suspended or not self._replayable:
            return []
        return [self._request_replay(self._next_number or 0, None, "quiet")]

    def on_disconnected(self) -> list[StreamOutcome]:
        """The connection is gone. The caller decides how long to wait before it says ``replaced``."""
        if self._is_suspended or self._next_number is None:
            self._forget_replay()
            return []
        self._forget_replay()
        self._is_suspended = True
        return [StreamSuspended("disconnected")]

    def on_replaced(self, reason: str) -> list[StreamOutcome]:
        """It is known from elsewhere that another process is there: the pod's UID, its start time, or too long a silence."""
        self._forget_replay()
        return self._restart(reason)

    def accept_in_order(self, frame: EventFrame) -> AcceptBatch | None:
        """``live`` for the usual frame, which is just the one that comes next; None for any other, which is still to be handed in."""
        if frame.number != self._next_number or self._is_replaying or self._is_suspended:
            return None
        self._last_live = frame.number
        return self._accept(frame, "in order")

    def on_live_frame(self, frame: EventFrame) -> list[StreamOutcome]:
        """A frame of the subscription."""
        outcomes: list[StreamOutcome] = self.on_connected() if self._is_suspended else []
        forward, self._last_live = frame.number > self._last_live, frame.number
        if not self._is_replaying:
            outcomes += self._take(frame, "in order")
            return outcomes
        self._hold(frame, forward)
        limits = self._limits
        if len(self._held_frames) > limits.kv_replay_buffered or self._held_bytes > limits.kv_replay_buffered_bytes:
            self._stale_replay_ends += 1
            outcomes += self._give_up("too much arrived before the replay ended")
        return outcomes

    def on_replayed_frame(self, frame: EventFrame | None) -> list[StreamOutcome]:
        """One answer of the replay, None at its end."""
        if self._stale_replay_ends or not self._is_replaying:
            if frame is None:
                self._stale_replay_ends = max(0, self._stale_replay_ends - 1)
                return []
            return [DuplicateBatch(frame.number, "a replay that nobody waits for")]
        if frame is None:
            return self._on_replay_end()
        if self._replay_first is None:
            self._replay_first = frame.number
        self._replayed += 1
        if self._identity_unproven:
            return self._check_identity(frame)
        expected = self._next_number
        if expected is None:
            self._replay_made_progress = True
            return [
                *self._first_outcomes(frame.number, "the replay starts later than asked"),
                self._accept(frame, "replayed"),
            ]
        if frame.number < expected:
            return [DuplicateBatch(frame.number, "replayed twice")]
        if frame.number > expected:
            if self._replay_made_progress:
                self._replay_has_hole = True
                return [DuplicateBatch(frame.number, "behind a hole, it will be replayed again")]
            self._replay_is_gapless = False
            lost = BatchesLost(expected, frame.number - 1, "the replay has a hole")
            return [lost, self._accept(frame, "replayed")]
        self._replay_made_progress = True
        return [self._accept(frame, "replayed")]

    def on_replay_failed(self, reason: str) -> list[StreamOutcome]:
        """No replay came, or not to its end; answers that still come must not be handed in (open a new socket)."""
        self._stale_replay_ends = 0
        if (
            self._is_replaying and self._replay_has_hole
        ):  # what came is the engine's; its end may have been left out as well
            return [self._request_rest()]
        return self._give_up(reason) if self._is_replaying else []

    def on_replay_not_sent(self) -> None:
        """The replay that was given up last had not been asked for yet: no end of it will come."""
        self._stale_replay_ends = max(0, self._stale_replay_ends - 1)

    # --- one frame ------------------------------------------------------------------------------------------------------

    def _take(self, frame: EventFrame, reason: str) -> list[StreamOutcome]:
        expected, number = self._next_number, frame.number
        if number == expected:
            return [self._accept(frame, reason)]
        if expected is None:
            if number and self._replayable and not self._replayed_from_start:
                return [self._hold_and_request(frame, 0, "joined late")]
            return [*self._first_outcomes(number, "nothing can be replayed"), self._accept(frame, reason)]
        if number > expected:
            if self._replayable:
                return [self._hold_and_request(frame, expected, "numbers are missing")]
            return [BatchesLost(expected, number - 1, "nothing can be replayed"), self._accept(frame, reason)]
        if self._known.get(number) == _digest(frame):
            return [DuplicateBatch(number, "seen already")]
        return [*self._restart("the numbers went back"), *self._take(frame, reason)]

    def _accept(self, frame: EventFrame, reason: str) -> AcceptBatch:
        number, known = frame.number, self._known
        self._next_number = number + 1
        known[number] = _digest(frame)
        # What was held back is compared with what was replayed, so during a replay more digests are kept.
        most = (
            self._limits.kv_replay_batches
            if self._is_replaying or self._held_frames
            else self._limits.kv_sequences_known
        )
        if len(known) > most:
            self._trim(most)
        return AcceptBatch(number, frame.payload, reason)

    def _first_outcomes(self, number: int, reason: str) -> list[StreamOutcome]:
        """What a stream's first number says: all of it, or that the beginning is missing."""
        if number == 0:
            return [StreamComplete("the first that the engine published")]
        return [BatchesLost(0, number - 1, reason)]

    def _restart(self, reason: str) -> list[StreamOutcome]:
        self._next_number = None
        self._known.clear()
        self._is_suspended = self._identity_unproven = self._replayed_from_start = False
        self._replay_first = None
        return [ProcessRestarted(reason)]

    # --- replay ---------------------------------------------------------------------------------------------------------

    def _hold_and_request(self, frame: EventFrame, first: int, reason: str) -> SequenceGap:
        self._hold(frame, True)
        return self._request_replay(first, frame.number - 1, reason)

    def _hold(self, frame: EventFrame, forward: bool) -> None:
        self._held_frames.append((frame, forward))
        self._held_bytes += len(frame.payload)

    def _request_replay(self, first: int, last: int | None, reason: str) -> SequenceGap:
        self._is_replaying, self._replay_first, self._replayed = True, None, 0
        self._identity_unproven = self._next_number is not None
        self._replay_is_gapless = self._next_number is None
        self._replay_made_progress = self._replay_has_hole = False
        return SequenceGap(first, last, first - 1 if self._identity_unproven else first, reason)

    def _request_rest(self) -> SequenceGap:
        """For the rest of a replay that had a hole."""
        assert self._next_number is not None
        self._identity_unproven, self._replay_made_progress, self._replay_has_hole = True, False, False
        self._replayed -= 1  # the last batch before the hole will come once more
        return SequenceGap(self._next_number, None, self._next_number - 1, "the replay has a hole")

    def _falls_short(self) -> bool:
        """Whether what was held back does not go on where the replay ended."""
        assert self._next_number is not None
        later = [frame.number for frame, _ in self._held_frames if frame.number >= self._next_number]
        return bool(later) and min(later) > self._next_number

    def _check_identity(self, frame: EventFrame) -> list[StreamOutcome]:
        """The first answer of a replay that was asked from the last batch accepted."""
        expected = self._next_number
        assert expected is not None
        self._identity_unproven = False
        if frame.number == expected - 1 and self._known.get(frame.number) == _digest(frame):
            return self._resume("the replay begins with the last batch that was seen")
        if frame.number < expected or self._is_suspended:
            # Another process. What else this replay brings begins in its middle; if it came so far, the rest is asked for anew.
            outcomes = self._restart("the replay tells another history")
            if not frame.number:
                return [*outcomes, *self._first_outcomes(frame.number, "joined late"), self._accept(frame, "replayed")]
            self._stale_replay_ends += 1
            return [*outcomes, self._request_replay(0, None, "another process")]
        # The connection never broke, so it is the same process; its buffer begins after the last batch that was seen.
        if frame.number == expected:
            return [self._accept(frame, "replayed")]
        lost = BatchesLost(expected, frame.number - 1, "the replay starts later than asked")
        return [lost, self._accept(frame, "replayed")]

    def _resume(self, reason: str) -> list[StreamOutcome]:
        if not self._is_suspended:
            return []
        self._is_suspended = False
        return [StreamResumed(reason)]

    def _on_replay_end(self) -> list[StreamOutcome]:
        if self._replay_has_hole or (self._replay_made_progress and self._falls_short()):
            return [self._request_rest()]
        self._is_replaying = False
        outcomes: list[StreamOutcome] = []
        if self._identity_unproven:
            outcomes = self._restart("the replay knows nothing of the last batch that was seen")
            if self._held_frames:
                return [*outcomes, self._request_replay(0, None, "another process")]
        first = self._replay_first
        # An engine that had published nothing may be asked again.
        self._replayed_from_start = first is not None or bool(self._held_frames)
        if self._replay_is_gapless and first == _MAX_FIRST_NUMBER and self._replayed < self._buffer:
            outcomes.append(StreamComplete(f"its numbers begin at {first}, and its buffer is not full"))
        return outcomes + self._drain("the replay did not bring them")

    def _give_up(self, reason: str) -> list[StreamOutcome]:
        """Go on without the replay."""
        self._is_replaying = False
        outcomes: list[StreamOutcome] = self._restart(reason) if self._is_suspended else []
        self._identity_unproven = False
        self._replayed_from_start = True
        return outcomes + self._drain(reason)

    def _drain(self, reason: str) -> list[StreamOutcome]:
        """What was held back, in the order in which it came."""
        held, self._held_frames, self._held_bytes = self._held_frames, [], 0
        outcomes: list[StreamOutcome] = []
        for frame, forward in held:
            expected = self._next_number
            if self._is_replaying:  # one of them showed a restart
                self._hold(frame, forward)
            elif expected is None:
                outcomes += [*self._first_outcomes(frame.number, reason), self._accept(frame, "held back")]
            elif frame.number > expected:
                outcomes += [BatchesLost(expected, frame.number - 1, reason), self._accept(frame, "held back")]
            elif forward and frame.number < (self._replay_first or 0):
                outcomes.append(DuplicateBatch(frame.number, "older than the replay, hence lost"))
            else:
                outcomes += self._take(frame, "held back")
        if not self._is_replaying:
            self._trim(self._limits.kv_sequences_known)
        return outcomes

    def _trim(self, most: int) -> None:
        known = self._known
        while len(known) > most:
            del known[next(iter(known))]

    def _forget_replay(self) -> None:
        self._is_replaying = self._identity_unproven = self._replayed_from_start = False
        self._held_frames.clear()
        self._held_bytes = 0
        self._stale_replay_ends = 0


def _digest(frame: EventFrame) -> int:
    return xxhash.xxh3_64_intdigest(frame.payload)
