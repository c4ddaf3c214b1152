"""Timing events."""

from enum import IntEnum

import msgspec


class TimingEventKind(IntEnum):
    """What a row tells."""

    DISPATCHED = 0
    FIRST_TOKEN = 1
    FINISHED = 2
    ABANDONED = 3


class TimingEvent(msgspec.Struct, array_like=True, gc=False):
    """``tokens`` and ``cached``: of the prompt, as expected (SENT) or as the engine told (DONE; negative: it did not); ``output``: of
    the answer, negative where it is not known. ``instance`` is empty but for SENT."""

    kind: int
    at: float
    request: str
    instance: str = ""
    tokens: float = 0.0
    cached: float = -1.0
    output: float = -1.0


class TimingEvents(msgspec.Struct, tag=True):
    """``dropped`` did not fit."""

    rows: list[TimingEvent]
    dropped: int
