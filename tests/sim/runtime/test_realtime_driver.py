"""The real-time driver: steps end at absolute deadlines, however late the event loop is."""

import asyncio
from dataclasses import dataclass, field

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence, EngineStep
from fairlead_sim.runtime.realtime_driver import MAX_LAG_SECONDS, RealtimeDriver
from fairlead_testing.pytest_hooks.coroutine_tests import run_async

pytestmark = pytest.mark.simulated

STEP = 0.01
PROFILE = EngineProfile("even", prefill_token_seconds=0.0, step_seconds=STEP, kv_tokens=10_000)


@dataclass
class RecordingReceiver:
    """A receiver that records, and calls a hook on each token."""

    sequence: EngineSequence
    end_reason: str = "length"
    tokens: int = 0
    lasts: list[bool] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def on_token(self, last: bool) -> None:
        self.lasts.append(last)
        if last:
            self.over.set()

    def on_ended(self, reason: str) -> None:
        self.end_reason = reason
        self.over.set()


@dataclass
class RecordingObserver:
    """An observer that records when steps began and ended."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def observe_step(self, rank: int, step: EngineStep, began: float, ended: float) -> None:
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


def sequence(name: str, max_tokens: int) -> EngineSequence:
    return EngineSequence(id=name, arrival=100.0, prompt_tokens=5, max_tokens=max_tokens)


def run_one(jump: float, max_tokens: int) -> tuple[RecordingObserver, RecordingReceiver, RealtimeDriver]:
    async def scenario() -> tuple[RecordingObserver, RecordingReceiver, RealtimeDriver]:
        steps = RecordingObserver()
        driver = RealtimeDriver(EngineCore(PROFILE), observer=steps, clock=LateClock(jump))
        receiver = RecordingReceiver(sequence("a", max_tokens))
        driver.submit(receiver)
        await receiver.over.wait()
        return steps, receiver, driver

    return run_async(scenario())


def test_a_late_loop_does_not_slow_the_engine_down() -> None:
    steps, receiver, driver = run_one(jump=STEP * 1.5, max_tokens=20)
    assert receiver.lasts == [False] * 19 + [True]
    assert all(began == before for (began, _), (_, before) in zip(steps.spans[1:], steps.spans, strict=False))
    assert abs((steps.spans[-1][1] - steps.spans[0][0]) - 20 * STEP) < 1e-9
    assert driver.skipped_seconds == 0


def test_a_driver_that_is_far_behind_drops_the_lost_time_and_reports_it() -> None:
    _steps, receiver, driver = run_one(jump=MAX_LAG_SECONDS, max_tokens=8)
    assert len(receiver.lasts) == 8
    assert driver.skipped_seconds > MAX_LAG_SECONDS


async def test_requests_of_one_turn_of_the_loop_start_in_one_step() -> None:
    driver = RealtimeDriver(EngineCore(PROFILE))
    receivers = [RecordingReceiver(sequence(str(number), 2)) for number in range(5)]
    for each in receivers:
        driver.submit(each)
    for each in receivers:
        await each.over.wait()
    assert driver.core.stats.steps_total == 2


async def test_the_count_of_endings_knows_the_scripts_reason() -> None:
    steps = RecordingObserver()
    driver = RealtimeDriver(EngineCore(PROFILE), observer=steps)
    receiver = RecordingReceiver(sequence("a", 1), end_reason="stop")
    driver.submit(receiver)
    await receiver.over.wait()
    assert steps.reasons == ["stop"]


async def test_a_prompt_that_wants_no_token_ends_when_it_is_computed() -> None:
    driver = RealtimeDriver(EngineCore(PROFILE))
    receiver = RecordingReceiver(sequence("a", 0))
    driver.submit(receiver)
    await receiver.over.wait()
    receiver = receiver
    assert (receiver.lasts, receiver.end_reason) == ([], "length")


async def test_an_aborted_sequence_gets_nothing_more_and_its_slot_is_free() -> None:
    driver = RealtimeDriver(EngineCore(PROFILE))
    gone, stays = RecordingReceiver(sequence("gone", 100)), RecordingReceiver(sequence("stays", 3))
    driver.submit(gone)
    driver.submit(stays)
    driver.abort("gone")
    assert driver.core.stats.waiting == 1
    await stays.over.wait()
    assert (gone.lasts, gone.over.is_set()) == ([], False)
