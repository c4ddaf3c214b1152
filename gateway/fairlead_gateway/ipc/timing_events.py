"""Timing events of requests, from which the supervisor learns engine profiles."""

from enum import IntEnum

import msgspec


class TimingEventKind(IntEnum):
    """The kind of a timing event.

    UNMEASURED: a complete response whose tokens say nothing of the time of a step.
    """

    DISPATCHED = 0
    FIRST_TOKEN = 1
    FINISHED = 2
    ABANDONED = 3
    UNMEASURED = 4


class TimingEvent(msgspec.Struct, array_like=True, gc=False):
    """One event in the life of a request.

    - at: monotonic seconds.
    - request, instance: ids; `instance` is empty unless DISPATCHED.
    - tokens, cached: of the prompt, as expected (DISPATCHED) or as reported (FINISHED); negative
      if not reported.
    - output: generated tokens (FINISHED); negative if unknown.
    """

    kind: int
    at: float
    request: str
    instance: str = ""
    tokens: float = 0.0
    cached: float = -1.0
    output: float = -1.0


class TimingEvents(msgspec.Struct, tag=True):
    """Worker → supervisor: timing events. `dropped` is the number of those that did not fit."""

    rows: list[TimingEvent]
    dropped: int
