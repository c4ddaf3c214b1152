"""Frames of a stream, the outcomes of a frame, and the stream's position, as msgspec structs.

Why: compiled modules cannot contain structs, so these are apart from ``stream_sequencer.py``.
"""

import msgspec


class EventFrame(msgspec.Struct, frozen=True, gc=False):
    """One batch as received."""

    number: int
    payload: bytes


class AcceptBatch(msgspec.Struct, frozen=True, gc=False):
    """A batch that is next in order: its payload is to be decoded and applied now."""

    number: int
    payload: bytes


class DuplicateBatch(msgspec.Struct, frozen=True, gc=False):
    """A batch to leave out: applied already, lost, or part of an abandoned or incomplete replay."""

    number: int


class SequenceGap(msgspec.Struct, frozen=True, gc=False):
    """Missing batches, ``first`` to ``last`` (None: unknown).

    ask: the number from which to request a replay.
    """

    first: int
    last: int | None
    ask: int


class BatchesLost(msgspec.Struct, frozen=True, gc=False):
    """Batches that will not come. The known blocks may no longer be cached: drop them and learn
    again.
    """

    first: int
    last: int
    reason: str


class ProcessRestarted(msgspec.Struct, frozen=True, gc=False):
    """The end of an epoch: another engine process publishes, or this cannot be excluded."""

    reason: str


class StreamComplete(msgspec.Struct, frozen=True, gc=False):
    """The start of complete knowledge: every batch of this engine process was read, or follows
    now.
    """

    reason: str


class StreamSuspended(msgspec.Struct, frozen=True, gc=False):
    """A broken connection: the blocks may be outdated. ``StreamResumed`` or ``ProcessRestarted``
    follows.
    """

    reason: str


class StreamResumed(msgspec.Struct, frozen=True, gc=False):
    """The continuation of a suspended stream by the same process; every missed batch follows."""


StreamOutcome = (
    AcceptBatch
    | DuplicateBatch
    | SequenceGap
    | BatchesLost
    | ProcessRestarted
    | StreamComplete
    | StreamSuspended
    | StreamResumed
)


class StreamPosition(msgspec.Struct, frozen=True, gc=False):
    """The position of a stream: the next number, and the digests of the last batches by number."""

    following: int
    known: list[tuple[int, int]]
