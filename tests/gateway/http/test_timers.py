"""The timeout queue: entries time out oldest first, by one timer, and removed ones never."""

import asyncio
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from fairlead.runtime.clock import ManualClock
from fairlead_gateway.http import timers
from fairlead_gateway.http.timers import TimeoutEntry, TimeoutQueue

pytestmark = pytest.mark.skipif(
    not (timers.__file__ or "").endswith(".py"), reason="no interpreted class can be derived from a compiled one"
)


class Timer:
    """A loop's only timer, fired by hand."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.due: float | None = None
        self.fire: Callable[[], None] | None = None

    def call_later(self, seconds: float, fire: Callable[[], None]) -> SimpleNamespace:
        assert self.fire is None
        self.due, self.fire = self._clock.now() + seconds, fire
        return SimpleNamespace(cancel=self._cancel)

    def _cancel(self) -> None:
        self.due = self.fire = None

    def fire_due(self) -> None:
        """Fire if it is time."""
        while self.due is not None and self.due <= self._clock.now():
            fire, self.due, self.fire = self.fire, None, None
            assert fire is not None
            fire()


class One(TimeoutEntry):
    """It remembers whether it was late."""

    def __init__(self) -> None:
        super().__init__()
        self.lates = 0

    def on_timeout(self) -> None:
        self.lates += 1


def made(seconds: float) -> tuple[TimeoutQueue, ManualClock, Timer]:
    clock = ManualClock(1_000.0)
    timer = Timer(clock)
    return TimeoutQueue(cast(asyncio.AbstractEventLoop, timer), seconds, clock.now), clock, timer


def test_whatever_is_not_over_in_time_is_late_once_and_nothing_else_is() -> None:
    draw = random.Random(5)
    overdue, clock, timer = made(3.0)
    begun: dict[One, float] = {}
    over: set[One] = set()
    for _ in range(400):
        if draw.random() < 0.6:
            one = One()
            begun[one] = clock.now()
            overdue.add(one, clock.now())
        going = [one for one in begun if one not in over and not one.lates]
        if going and draw.random() < 0.5:
            over.add(ended := draw.choice(going))
            overdue.remove(ended)
            overdue.remove(ended)
        clock.advance(draw.choice((0.0, 0.125, 1.0)))
        timer.fire_due()
        for one, began in begun.items():
            assert one.lates == (one not in over and clock.now() - began >= 3.0)


def test_after_clear_no_entry_times_out() -> None:
    overdue, clock, timer = made(1.0)
    ones = [One() for _ in range(3)]
    for one in ones:
        overdue.add(one, clock.now())
    overdue.clear()
    clock.advance(9.0)
    timer.fire_due()
    assert timer.fire is None
    assert not any(one.lates for one in ones)
