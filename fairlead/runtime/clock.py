"""Time as an argument: decisions never read a clock, they are handed one.

``now`` is monotonic seconds and the only time used for ages and durations; ``wall`` is Unix seconds, for people and
logs.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings, both float seconds."""

    def now(self) -> float:
        """Monotonic seconds; only differences mean anything."""
        ...

    def wall(self) -> float:
        """Unix seconds."""
        ...


class SystemClock:
    """The real clock; built once in each ``__main__``. The system's functions themselves: a request asks twenty times."""

    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


class AcceleratedClock:
    """A clock on which ``speed`` seconds pass in each of another; the time of day stays. For simulated engines that run so fast."""

    def __init__(self, clock: Clock, speed: float) -> None:
        self._clock = clock
        self._speed = speed

    def now(self) -> float:
        """Monotonic seconds, of which there are more."""
        return self._clock.now() * self._speed

    def wall(self) -> float:
        """Unix seconds of the other clock."""
        return self._clock.wall()


class ManualClock:
    """A clock that moves only when told to; for tests and for simulated time."""

    def __init__(self, now: float = 0.0, wall: float = 1_800_000_000.0) -> None:
        self._now = now
        self._wall_offset = wall - now

    def now(self) -> float:
        """The time last set."""
        return self._now

    def wall(self) -> float:
        """The time last set, as Unix seconds."""
        return self._now + self._wall_offset

    def advance(self, seconds: float) -> None:
        """Move forward; a clock never goes back."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        self._now += seconds
