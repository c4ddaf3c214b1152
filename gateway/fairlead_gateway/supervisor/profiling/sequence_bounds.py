"""Bounds on the requests that an engine computes at a time, from its profile and its reports.

The gateway keeps further requests of callers until a sequence is free, so that its order counts and
not that of the engine's queue. The bound is that of the engine's profile. An engine without one
has no bound until it reports waiting requests twice in a row. Then it is the most that it ran
meanwhile.

A bound that is too low costs throughput, and shows: the engine runs as many and has none waiting.
Then the bound grows by a quarter. If requests wait in the engine after that, it falls back, and the
next try comes later, at `MIN_TRY_SECONDS` first, and at most `MAX_TRY_SECONDS`.

An engine that reports nothing has the bound of its profile. Without a profile it has none: all
requests are sent there, and wait in its own queue.

Pure: callers pass the time and the reports.
"""

from collections.abc import Mapping
from typing import Final

from fairlead.fleet.model import Fleet

MIN_TRY_SECONDS: Final = 4.0
MAX_TRY_SECONDS: Final = 64.0
_GROWTH: Final = 4
_MAX_SEQUENCES: Final = 1 << 20
"""No engine computes more at a time, whatever it reports."""


class SequenceBound:
    """The bound of one engine; `value` is None while none is known.

    stated: that of its profile; None without a profile.
    """

    __slots__ = ("_floor", "_next_try_at", "_ran", "_tries_after", "_was_tried", "stated", "value")

    def __init__(self, stated: int | None) -> None:
        self.stated = self.value = self._floor = stated
        self._ran: float | None = None  # the most in reports with waiting requests, in a row
        self._next_try_at = float("-inf")
        self._tries_after = MIN_TRY_SECONDS
        self._was_tried = False

    def observe(self, running: float | None, waiting: float | None, now: float) -> None:
        """Learns from one report. A missing value teaches nothing."""
        if running is None or waiting is None:
            return
        if waiting > 0:
            self._on_queue(running, now)
            return
        self._ran = None
        if self.value is None or running < self.value or now < self._next_try_at:
            return
        if self._was_tried:  # the last try was right
            self._floor, self._tries_after = self.value, MIN_TRY_SECONDS
        self._was_tried = True
        self.value = min(_MAX_SEQUENCES, self.value + max(1, self.value // _GROWTH))

    def _on_queue(self, running: float, now: float) -> None:
        before, self._ran = self._ran, max(running, self._ran or 0.0)
        if self._was_tried:
            self._was_tried = False
            self.value = self._floor
            self._next_try_at = now + self._tries_after
            self._tries_after = min(MAX_TRY_SECONDS, 2 * self._tries_after)
        elif before is not None and self.stated is None:
            found = max(1, round(min(_MAX_SEQUENCES, self._ran)))
            if self.value is None or found < self.value:
                self.value = self._floor = found


class SequenceBounds:
    """The bounds of all engines of a fleet, by instance."""

    def __init__(self) -> None:
        self._bounds: dict[str, SequenceBound] = {}

    def update_fleet(self, fleet: Fleet) -> None:
        """Adds and drops instances. One whose profile states another number begins again."""
        bounds: dict[str, SequenceBound] = {}
        for instances in fleet.instances.values():
            for instance in instances:
                stated = None if instance.profile is None else instance.profile.max_sequences
                known = self._bounds.get(instance.id)
                bounds[instance.id] = SequenceBound(stated) if known is None or known.stated != stated else known
        self._bounds = bounds

    def observe(self, instance: str, running: float | None, waiting: float | None, now: float) -> int | None:
        """Returns the bound of an instance if the report changes it, else None."""
        bound = self._bounds.get(instance)
        if bound is None:
            return None
        before = bound.value
        bound.observe(running, waiting, now)
        return None if bound.value == before else bound.value

    def values(self) -> Mapping[str, int]:
        """Returns all known bounds."""
        return {name: bound.value for name, bound in self._bounds.items() if bound.value is not None}
