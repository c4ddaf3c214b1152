"""Sleep levels of a simulated engine: wake times, and answers of an engine without weights."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from fairlead_sim.runtime.settings import EngineSettings
from fairlead_sim.runtime.simulated_engine import MEMORY_PARTS, SleepMode
from fairlead_sim.server.process import RunningEngine
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.replay import get_request, post_request, send_request

pytestmark = pytest.mark.simulated


class Later:
    """A manual scheduler that records what was delayed, and for how long."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, seconds: float, call: Callable[[], None]) -> None:
        self.calls.append((seconds, call))

    def pass_(self) -> None:
        calls, self.calls = self.calls, []
        for _, call in calls:
            call()


@pytest.fixture
def later() -> Later:
    return Later()


@pytest.fixture
def wakings() -> list[str]:
    return []


@pytest.fixture
def slumber(later: Later, wakings: list[str]) -> SleepMode:
    return SleepMode(2.0, 15.0, later, lambda: wakings.append("awake"))


def test_weights_come_back_from_host_memory_in_the_time_that_takes(
    slumber: SleepMode, later: Later, wakings: list[str]
) -> None:
    slumber.fall_asleep(1)
    slumber.wake_up(MEMORY_PARTS, lambda: wakings.append("answered"))
    assert [seconds for seconds, _ in later.calls] == [2.0]
    assert slumber.level == 1
    assert not wakings
    later.pass_()
    assert slumber.level is None
    assert wakings == ["awake", "answered"]


def test_level_two_wakes_at_once_without_weights_until_they_are_loaded(
    slumber: SleepMode, later: Later, wakings: list[str]
) -> None:
    slumber.fall_asleep(2)
    slumber.wake_up(frozenset({"weights"}), lambda: wakings.append("memory"))
    assert slumber.level == 2
    assert slumber.weights_missing
    slumber.reload_weights(lambda: wakings.append("loaded"))
    assert [seconds for seconds, _ in later.calls] == [15.0]
    assert slumber.weights_missing
    later.pass_()
    slumber.wake_up(frozenset({"kv_cache"}), lambda: wakings.append("answered"))
    assert wakings == ["memory", "loaded", "awake", "answered"]
    assert slumber.level is None
    assert not slumber.weights_missing


def test_an_engine_that_is_put_to_sleep_while_it_wakes_stays_asleep(
    slumber: SleepMode, later: Later, wakings: list[str]
) -> None:
    slumber.fall_asleep(1)
    slumber.wake_up(MEMORY_PARTS, lambda: wakings.append("answered"))
    slumber.fall_asleep(1)
    later.pass_()
    assert slumber.level == 1
    assert wakings == ["answered"]


def test_waking_an_engine_that_is_awake_is_answered_at_once(
    slumber: SleepMode, later: Later, wakings: list[str]
) -> None:
    slumber.wake_up(MEMORY_PARTS, lambda: wakings.append("answered"))
    assert wakings == ["awake", "answered"]  # and what was paused goes on
    assert not later.calls


@asynccontextmanager
async def sleeping_engine(settings: EngineSettings) -> AsyncIterator[RunningEngine]:
    async with running_engine(settings) as engine, AsyncExitStack():
        yield engine


async def post(engine: RunningEngine, target: str, body: object = None) -> Any:
    return (await send_request(engine.url.removeprefix("http://"), post_request(target, body))).json()


async def asleep(engine: RunningEngine) -> bool:
    found = (await send_request(engine.url.removeprefix("http://"), get_request("/is_sleeping"))).json()
    return bool(found["is_sleeping"])


async def test_an_engine_woken_from_level_two_answers_only_after_a_reload() -> None:
    async with sleeping_engine(EngineSettings()) as engine:
        body = {"prompt": "Once upon a time", "max_tokens": 12, "seed": 7}

        async def text() -> str:
            return str((await post(engine, "/v1/completions", body))["choices"][0]["text"])

        before = await text()
        await post(engine, "/sleep?level=2&mode=wait")
        assert await post(engine, "/wake_up?tags=weights") == {"status": "awake", "tags": ["weights"]}
        assert await asleep(engine)
        await post(engine, "/wake_up?tags=kv_cache")
        assert not await asleep(engine)
        assert await text() != before
        assert await post(engine, "/collective_rpc", {"method": "reload_weights"}) == {"results": [None]}
        assert await text() == before
