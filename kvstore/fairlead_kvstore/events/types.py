"""What a stream takes, what it says of it, and where it stands. (Beside ``sequence.py``: what is compiled holds no structs.)"""

import msgspec


class EventFrame(msgspec.Struct, frozen=True, gc=False):
    """One batch as it came: its topic, its number and its payload."""

    topic: bytes
    number: int
    payload: bytes


class AcceptBatch(msgspec.Struct, frozen=True, gc=False):
    """Decode and apply this payload, now and in this order."""

    number: int
    payload: bytes
    reason: str = "in order"


class DuplicateBatch(msgspec.Struct, frozen=True, gc=False):
    """Leave it; it was applied already, or nobody waits for it any more."""

    number: int
    reason: str


class SequenceGap(msgspec.Struct, frozen=True, gc=False):
    """``first`` to ``last`` are missing (``last`` None: who knows): ask for a replay from ``ask``."""

    first: int
    last: int | None
    ask: int
    reason: str


class BatchesLost(msgspec.Struct, frozen=True, gc=False):
    """``first`` to ``last`` will not come. What is held of this engine may be gone: drop it and learn anew."""

    first: int
    last: int
    reason: str


class ProcessRestarted(msgspec.Struct, frozen=True, gc=False):
    """Another process speaks, or nobody can tell: the engine's epoch ends and with it all that it held."""

    reason: str


class StreamComplete(msgspec.Struct, frozen=True, gc=False):
    """Everything that this engine ever published was seen, or follows now."""

    reason: str


class StreamSuspended(msgspec.Struct, frozen=True, gc=False):
    """The connection broke; what is held may be the past. Either ``Resumed`` or ``Restart`` follows."""

    reason: str


class StreamResumed(msgspec.Struct, frozen=True, gc=False):
    """It is the same process, and nothing was missed that will not follow."""

    reason: str


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
    """Where a stream stands: the number that comes next, and the digests of the last batches by number."""

    following: int
    known: list[tuple[int, int]]
