"""Steps and short outcomes for tests of the event sequencer."""

from collections.abc import Iterable

from fairlead.limits import Limits
from fairlead_kvstore.events.stream_sequencer import EventSequencer
from fairlead_kvstore.events.types import (
    AcceptBatch,
    BatchesLost,
    DuplicateBatch,
    EventFrame,
    ProcessRestarted,
    SequenceGap,
    StreamComplete,
    StreamOutcome,
    StreamResumed,
    StreamSuspended,
)


def frame(number: int, process: str = "first") -> EventFrame:
    """Returns the batch of this process under a number."""
    return EventFrame(b"kv", number, f"{process} {number}".encode())


def short(outcomes: Iterable[StreamOutcome]) -> list[str]:
    """Returns outcomes in short form.

    ``A5`` accepts 5, ``G3-6?2`` misses 3 to 6 and requests from 2, ``L3-6`` lost them; others are
    ``D5``, ``R``, ``C``, ``S``, ``resumed``.
    """
    found = []
    for one in outcomes:
        if isinstance(one, AcceptBatch):
            found.append(f"A{one.number}")
        elif isinstance(one, DuplicateBatch):
            found.append(f"D{one.number}")
        elif isinstance(one, SequenceGap):
            found.append(f"G{one.first}-{'' if one.last is None else one.last}?{one.ask}")
        elif isinstance(one, BatchesLost):
            found.append(f"L{one.first}-{one.last}")
        else:
            found.append(
                {ProcessRestarted: "R", StreamComplete: "C", StreamSuspended: "S", StreamResumed: "resumed"}[type(one)]
            )
    return found


def live(stream: EventSequencer, *numbers: int, process: str = "first") -> list[str]:
    """Passes frames of the subscription to the stream; returns the outcomes in short form."""
    return short([one for number in numbers for one in stream.on_live_frame(frame(number, process))])


def replay(stream: EventSequencer, *numbers: int, process: str = "first", end: bool = True) -> list[str]:
    """Passes frames of a replay, and its end, to the stream; returns the outcomes."""
    found = [one for number in numbers for one in stream.on_replayed_frame(frame(number, process))]
    return short([*found, *(stream.on_replayed_frame(None) if end else [])])


def begun(*, replayable: bool = True, upto: int = 3, limits: Limits | None = None) -> EventSequencer:
    """Returns a stream that has accepted everything up to ``upto``."""
    stream = EventSequencer(replayable=replayable, limits=limits or Limits())
    if replayable:
        assert short(stream.on_connected()) == ["G0-?0"]
        assert replay(stream) == []
    live(stream, *range(upto + 1))
    return stream
