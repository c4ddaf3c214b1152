"""Queues of timers: entries time out oldest first, and idle timers when they are due."""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest

from fairlead.runtime.clock import ManualClock
from fairlead_gateway.http import timers
from fairlead_gateway.http.timers import (
    MAX_ENDS_PER_TURN,
    IdleTimer,
    PacedCalls,
    TimeoutEntry,
    TimeoutQueue,
    TimerQueue,
)

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


def timeout_queue(seconds: float) -> tuple[TimeoutQueue, ManualClock, Timer]:
    clock = ManualClock(1_000.0)
    timer = Timer(clock)
    return TimeoutQueue(cast(asyncio.AbstractEventLoop, timer), seconds, clock.now), clock, timer


def test_whatever_is_not_over_in_time_is_late_once_and_nothing_else_is() -> None:
    draw = random.Random(5)
    overdue, clock, timer = timeout_queue(3.0)
    begun: dict[One, float] = {}
    over: set[One] = set()
    for _ in range(400):
        if draw.random() < 0.6:
            entry = One()
            begun[entry] = clock.now()
            overdue.add(entry, clock.now())
        going = [entry for entry in begun if entry not in over and not entry.lates]
        if going and draw.random() < 0.5:
            over.add(ended := draw.choice(going))
            overdue.remove(ended)
            overdue.remove(ended)
        clock.advance(draw.choice((0.0, 0.125, 1.0)))
        timer.fire_due()
        for entry, began in begun.items():
            assert entry.lates == (entry not in over and clock.now() - began >= 3.0)


def test_after_clear_no_entry_times_out() -> None:
    overdue, clock, timer = timeout_queue(1.0)
    ones = [One() for _ in range(3)]
    for entry in ones:
        overdue.add(entry, clock.now())
    overdue.clear()
    clock.advance(9.0)
    timer.fire_due()
    assert timer.fire is None
    assert not any(entry.lates for entry in ones)


class Idle(IdleTimer):
    """It counts its idle periods."""

    def __init__(self, queue: TimerQueue) -> None:
        super().__init__(queue)
        self.expired = 0

    def on_expired(self) -> None:
        self.expired += 1


class Loop:
    """A loop with one timer, fired by hand; it fails if a second one is open."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_000.0)
        self.time = self.clock.now
        self.due: float | None = None
        self.fire: Callable[[], None] | None = None

    def call_at(self, due: float, fire: Callable[[], None]) -> SimpleNamespace:
        assert self.fire is None
        self.due, self.fire = due, fire
        return SimpleNamespace(cancel=self._cancel)

    def _cancel(self) -> None:
        self.due = self.fire = None

    def advance(self, seconds: float) -> None:
        """Let time pass, and fire what is due."""
        self.clock.advance(seconds)
        while self.due is not None and self.due <= self.clock.now():
            fire, self.due, self.fire = self.fire, None, None
            assert fire is not None
            fire()


def test_idle_timers_expire_when_they_are_due_and_only_then() -> None:
    draw = random.Random(11)
    loop = Loop()
    queue = TimerQueue(cast(asyncio.AbstractEventLoop, loop))
    timers_of = [Idle(queue) for _ in range(40)]
    due: dict[Idle, float] = {}
    expired = dict.fromkeys(timers_of, 0)
    for _ in range(4_000):
        timer, action = draw.choice(timers_of), draw.random()
        if action < 0.6:
            seconds = draw.choice((0.0, 0.25, 1.0, 4.0, 60.0))
            timer.restart(seconds)
            due[timer] = loop.clock.now() + seconds
        elif action < 0.8:
            timer.pause()
            due.pop(timer, None)
        else:
            timer.cancel()
            due.pop(timer, None)
        loop.advance(draw.choice((0.0, 0.0, 0.125, 1.0)))
        for late in [late for late, at in due.items() if at <= loop.clock.now()]:
            del due[late]
            expired[late] += 1
        assert {timer: timer.expired for timer in timers_of} == expired


def test_idle_timers_share_one_timer_of_the_loop_which_goes_to_the_earliest() -> None:
    loop = Loop()
    queue = TimerQueue(cast(asyncio.AbstractEventLoop, loop))
    for seconds in (9.0, 3.0, 6.0):
        Idle(queue).restart(seconds)
    assert loop.due == 1_003.0
    loop.advance(20.0)
    assert loop.due is None


def test_error_of_one_idle_timer_leaves_the_others_their_time() -> None:
    class Broken(Idle):
        def on_expired(self) -> None:
            raise ValueError("broken")

    loop = Loop()
    queue = TimerQueue(cast(asyncio.AbstractEventLoop, loop))
    Broken(queue).restart(1.0)
    sound = Idle(queue)
    sound.restart(2.0)
    with pytest.raises(ValueError, match="broken"):
        loop.advance(1.0)
    loop.advance(1.0)
    assert sound.expired == 1


def test_error_of_one_entry_leaves_the_others_their_time() -> None:
    class Broken(One):
        def on_timeout(self) -> None:
            raise RuntimeError("broken")

    queue, clock, timer = timeout_queue(2.0)
    entries = [Broken() if number % 3 == 0 else One() for number in range(10)]
    for entry in entries:
        queue.add(entry, clock.now())
    clock.advance(2.0)
    errors = 0
    while timer.due is not None:
        try:
            timer.fire_due()
        except RuntimeError:
            errors += 1
    assert errors == 4
    assert [entry.lates for entry in entries if not isinstance(entry, Broken)] == [1] * 6


class Again(TimeoutEntry):
    """It joins its queue again whenever its time is over."""

    def __init__(self, queue: TimeoutQueue) -> None:
        super().__init__()
        self._queue = queue
        self.times = 0

    def on_timeout(self) -> None:
        self.times += 1
        self._queue.add(self, self._queue.now())


def test_entry_may_join_its_queue_again_with_no_second_timer() -> None:
    overdue, clock, timer = timeout_queue(2.0)
    first, second = Again(overdue), Again(overdue)
    overdue.add(first, clock.now())
    clock.advance(0.5)
    overdue.add(second, clock.now())
    for _ in range(40):
        clock.advance(0.5)
        timer.fire_due()
    assert (first.times, second.times) == (10, 10)


class Turns:
    """A loop whose turns are run by hand."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self._calls.append(call)

    def run_turn(self) -> bool:
        """Runs what was scheduled before; returns whether there was anything."""
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        return bool(calls)


@pytest.mark.parametrize("seed", range(5))
def test_calls_keep_their_order_and_few_run_in_a_turn(seed: int) -> None:
    draw, turns, ran = random.Random(seed), Turns(), list[int]()
    paced, number = PacedCalls(cast(asyncio.AbstractEventLoop, turns)), 0
    for size in [1, 5, *[draw.randrange(4 * MAX_ENDS_PER_TURN) for _ in range(30)]]:
        before = len(ran)
        turns.run_turn()
        for _ in range(size):
            paced.run(partial(ran.append, number))
            number += 1
        assert len(ran) - before <= MAX_ENDS_PER_TURN
        assert len(ran) == number or len(ran) - before == MAX_ENDS_PER_TURN, "the turn is used up"
    while turns.run_turn():
        pass
    assert ran == list(range(number))
