"""The fair scheduler: equal shares in bytes for any message sizes, and a bounded time per round."""

from collections.abc import Callable
from dataclasses import replace

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_kvstore.reader.fair_scheduler import FairScheduler


class Soon:
    """A loop that runs its callbacks on request."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []

    def call_soon(self, callback: Callable[[], object], /) -> "Soon":
        self.waiting.append(callback)
        return self

    def turn(self) -> None:
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()


class Engine:
    """A source with messages of these ``sizes``."""

    def __init__(self, log: list[str], name: str, sizes: list[int], then: Callable[[], None] | None = None) -> None:
        self.log, self.name, self.sizes, self.then = log, name, sizes, then

    def read(self, most: int) -> tuple[int, bool]:
        used = 0
        while self.sizes and used < most:
            used += self.sizes.pop(0)
            self.log.append(self.name)
            if self.then is not None:
                self.then()
        return used, bool(self.sizes)


def turns_of(loop: Soon, quantum: int, whole: int, clock: ManualClock | None = None) -> FairScheduler:
    limits = replace(Limits(), kv_turn_bytes=quantum, kv_loop_bytes=whole)
    return FairScheduler(loop, clock or ManualClock(), limits)


def test_small_source_waits_for_one_turn_of_large_ones() -> None:
    log: list[str] = []
    loop = Soon()
    turns = turns_of(loop, 100, 1_000_000)
    for name in ("x", "y"):
        turns.mark_ready(Engine(log, name, [10] * 10_000))
    turns.mark_ready(Engine(log, "calm", [10]))
    loop.turn()
    assert log.index("calm") == 20


def test_shares_are_equal_in_bytes_and_large_messages_are_paid_off() -> None:
    log: list[str] = []
    loop = Soon()
    turns = turns_of(loop, 100, 40_000)
    small, large = Engine(log, "small", [10] * 100_000), Engine(log, "large", [1_000] * 1_000)
    turns.mark_ready(small)
    turns.mark_ready(large)
    for _ in range(20):
        loop.turn()
    assert 0.9 < log.count("small") * 10 / (log.count("large") * 1_000) < 1.1


def test_round_ends_after_its_bytes_and_continues_later() -> None:
    log: list[str] = []
    loop = Soon()
    turns = turns_of(loop, 100, 250)
    engine = Engine(log, "x", [50] * 20)
    turns.mark_ready(engine)
    turns.mark_ready(engine)
    loop.turn()
    assert (len(log), len(loop.waiting)) == (6, 1)
    while loop.waiting:
        loop.turn()
    assert (len(log), len(turns._budgets)) == (20, 0)


def test_source_closed_while_reading_gets_no_further_turn() -> None:
    log: list[str] = []
    loop = Soon()
    turns = turns_of(loop, 100, 1_000)
    engine = Engine(log, "x", [200] * 5)
    engine.then = lambda: turns.remove(engine)
    turns.mark_ready(engine)
    loop.turn()
    assert (log, len(turns._budgets), loop.waiting) == (["x"], 0, [])


def test_failing_source_does_not_stop_the_others() -> None:
    log: list[str] = []
    loop = Soon()
    turns = turns_of(loop, 100, 1_000)

    def broken() -> None:
        raise ZeroDivisionError

    turns.mark_ready(Engine(log, "x", [10], broken))
    turns.mark_ready(Engine(log, "y", [10]))
    try:
        loop.turn()
    except ZeroDivisionError:
        pass
    loop.turn()
    assert log == ["x", "y"]


def test_round_ends_after_some_milliseconds_without_a_lost_turn() -> None:
    log: list[str] = []
    loop, clock = Soon(), ManualClock()
    turns = turns_of(loop, 100, 1_000_000, clock)
    for name in ("x", "y", "z"):
        turns.mark_ready(Engine(log, name, [50] * 200, lambda: clock.advance(0.0011)))
    loop.turn()
    assert log == ["x", "x", "y", "y"]
    for _ in range(8):
        loop.turn()
    assert {log.count(name) for name in ("x", "y", "z")} == {12}
