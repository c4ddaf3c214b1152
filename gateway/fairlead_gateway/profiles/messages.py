"""Timing events of requests, from which the supervisor learns engine profiles, and its profiles."""

from enum import IntEnum
from typing import Final

import msgspec

from fairlead.engine_profile import EngineProfile

TIMING_REPORT_SECONDS: Final = 1.0
"""Limit: interval of a worker's reports of timings."""


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
    - loaded: those of `cached` that are loaded from CPU memory, disk and shared store (DISPATCHED);
      None: none.
    """

    kind: int
    at: float
    request: str
    instance: str = ""
    tokens: float = 0.0
    cached: float = -1.0
    output: float = -1.0
    loaded: tuple[float, float, float] | None = None


class ProfileUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: what was learned of engines, by instance.

    - sequences: the numbers of requests that an engine computes at a time.
    - memory_shares: how much of an engine's memory may be planned for.
    """

    profiles: dict[str, EngineProfile]
    sequences: dict[str, int] = {}
    memory_shares: dict[str, float] = {}
