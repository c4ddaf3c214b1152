"""Clocks. Decisions never read the time themselves; they get it as an argument.

`now` is monotonic seconds, the only time used for ages and durations. `wall` is Unix seconds, for
people and logs.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """A source of monotonic and wall-clock time, in float seconds."""

    def now(self) -> float:
        """Returns monotonic seconds. Only differences are meaningful."""

    def wall(self) -> float:
        """Returns Unix seconds."""


class SystemClock:
    """The system clock, created once in each `__main__`.

    Why static methods: a request reads the time twenty times, and these are the system's own
    functions.
    """

    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


@dataclass(frozen=True, slots=True)
class Pacing:
    """The clock, the random numbers and the sleep function of a retry loop.

    chance: returns a random number from 0 to 1.
    pause: sleeps for a number of seconds.
    """

    clock: Clock
    chance: Callable[[], float]
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep


class AcceleratedClock:
    """A clock for simulated engines whose monotonic time runs `speed` times as fast as another's.

    The wall-clock time is not changed.
    """

    def __init__(self, clock: Clock, speed: float) -> None:
        self._clock = clock
        self._speed = speed

    def now(self) -> float:
        """Returns the accelerated monotonic seconds."""
        return self._clock.now() * self._speed

    def wall(self) -> float:
        """Returns the Unix seconds of the underlying clock."""
        return self._clock.wall()


class ManualClock:
    """A clock that moves only when `advance` is called. For tests and simulated time."""

    def __init__(self, now: float = 0.0, wall: float = 1_800_000_000.0) -> None:
        self._now = now
        self._wall_offset = wall - now

    def now(self) -> float:
        """Returns the current manual time in monotonic seconds."""
        return self._now

    def wall(self) -> float:
        """Returns the current manual time in Unix seconds."""
        return self._now + self._wall_offset

    def advance(self, seconds: float) -> None:
        """Moves the clock forward. Raises ValueError for a negative number of seconds."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        self._now += seconds
