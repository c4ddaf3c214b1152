"""The real-time driver: steps follow one another on absolute deadlines, whatever the event loop does in between."""

import asyncio
from dataclasses import dataclass, field

from fairlead.profile import EngineProfile
from fairlead_sim.engine import EngineCore, Sequence, Step
from fairlead_sim.server.driver import FORGIVEN, Driver

STEP = 0.01
PROFILE = EngineProfile("even", prefill_token_seconds=0.0, step_seconds=STEP, kv_tokens=10_000)


@dataclass
class Told:
    """A receiver that remembers, and calls a hook on each token."""

    sequence: Sequence
    ending: str = "length"
    tokens: int = 0
    lasts: list[bool] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def token(self, last: bool) -> None:
        self.lasts.append(last)
        if last:
            self.over.set()

    def ended(self, reason: str) -> None:
        self.ending = reason
        self.over.set()


@dataclass
class Steps:
    """An observer that remembers when steps began and ended."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def step(self, rank: int, step: Step, began: float, ended: float) -> None:
        self.spans.append((began, ended))
        self.reasons += [reason for _, reason in step.finished]


class LateClock:
    """A clock that runs ahead of the loop: every reading is later than the one before."""

    def __init__(self, jump: float) -> None:
        self.now = 100.0
        self._jump = jump

    def __call__(self) -> float:
        self.now += self._jump
        return self.now


def sequence(name: str, max_tokens: int) -> Sequence:
    return Sequence(id=name, arrival=100.0, prompt_tokens=5, max_tokens=max_tokens)


def run_one(jump: float, max_tokens: int) -> tuple[Steps, Told, Driver]:
    async def scenario() -> tuple[Steps, Told, Driver]:
        steps = Steps()
        driver = Driver(EngineCore(PROFILE), observer=steps, clock=LateClock(jump))
        told = Told(sequence("a", max_tokens))
        driver.submit(told)
        await told.over.wait()
        return steps, told, driver

    return asyncio.run(scenario())


def test_a_late_loop_does_not_slow_the_engine_down() -> None:
    steps, told, driver = run_one(jump=STEP * 1.5, max_tokens=20)
    assert told.lasts == [False] * 19 + [True]
    assert all(began == before for (began, _), (_, before) in zip(steps.spans[1:], steps.spans, strict=False))
    assert abs((steps.spans[-1][1] - steps.spans[0][0]) - 20 * STEP) < 1e-9
    assert driver.given_up_seconds == 0


def test_a_loop_that_is_far_behind_gives_the_lost_time_up_and_says_so() -> None:
    _steps, told, driver = run_one(jump=FORGIVEN, max_tokens=8)
    assert len(told.lasts) == 8
    assert driver.given_up_seconds > FORGIVEN


def test_requests_of_one_turn_of_the_loop_start_in_one_step() -> None:
    async def scenario() -> int:
        driver = Driver(EngineCore(PROFILE))
        told = [Told(sequence(str(number), 2)) for number in range(5)]
        for each in told:
            driver.submit(each)
        for each in told:
            await each.over.wait()
        return driver.core.stats.steps_total

    assert asyncio.run(scenario()) == 2


def test_the_count_of_endings_knows_the_scripts_reason() -> None:
    async def scenario() -> list[str]:
        steps = Steps()
        driver = Driver(EngineCore(PROFILE), observer=steps)
        told = Told(sequence("a", 1), ending="stop")
        driver.submit(told)
        await told.over.wait()
        return steps.reasons

    assert asyncio.run(scenario()) == ["stop"]


def test_a_prompt_that_wants_no_token_ends_when_it_is_computed() -> None:
    async def scenario() -> Told:
        driver = Driver(EngineCore(PROFILE))
        told = Told(sequence("a", 0))
        driver.submit(told)
        await told.over.wait()
        return told

    told = asyncio.run(scenario())
    assert (told.lasts, told.ending) == ([], "length")


def test_an_aborted_sequence_gets_nothing_more_and_its_slot_is_free() -> None:
    async def scenario() -> None:
        driver = Driver(EngineCore(PROFILE))
        gone, stays = Told(sequence("gone", 100)), Told(sequence("stays", 3))
        driver.submit(gone)
        driver.submit(stays)
        driver.abort("gone")
        assert driver.core.stats.waiting == 1
        await stays.over.wait()
        assert (gone.lasts, gone.over.is_set()) == ([], False)

    asyncio.run(scenario())
