"""Engines that are silent to plain requests are left if they hang, and not if they compute."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fairlead.limits import Limits
from fairlead_gateway.telemetry.status_types import HealthState
from fairlead_testing.engines.scripted import EngineCall, ScriptedEngine, scripted_engine, well_behaved
from fairlead_testing.gateway.running_gateway import GOOD, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request

pytestmark = pytest.mark.simulated

LONG = GOOD | {"max_tokens": 4_096}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", GOOD),
    ("/v1/chat/completions", LONG),
    ("/v1/completions", {"model": "tiny", "prompt": "hi"}),
    ("/v1/messages", LONG),
    ("/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 9_999}),
    ("/v1/responses", {"model": "tiny", "input": "hi", "stream": True}),
    ("/v1/embeddings", {"model": "tiny", "input": "hi"}),
    ("/v1/rerank", {"model": "tiny", "query": "hi", "documents": ["a"]}),
]
FLOOR = 15.0


class TwoEngines:
    """Two engines. The one that gets the first request says nothing, after `seconds` it answers.

    computes: its counter grows meanwhile.
    """

    def __init__(self, seconds: float | None = None, *, computes: bool = False) -> None:
        self.engines: list[ScriptedEngine] = []
        self.silent: ScriptedEngine | None = None
        self._seconds = seconds
        self._computes = computes

    async def script(self, call: EngineCall) -> None:
        """Answers one request."""
        engine = next(engine for engine in self.engines if call in engine.calls)
        if self.silent is None:
            self.silent = engine
        if engine is not self.silent:
            await well_behaved(call)
        elif self._seconds is None:
            await call.wait_closed()
        else:
            for _ in range(int(self._seconds)):
                await asyncio.sleep(1.0)
                if self._computes and engine.generated_tokens is not None:
                    engine.generated_tokens += 30
            await well_behaved(call)

    @asynccontextmanager
    async def running(self, generated_tokens: int | None = 7) -> AsyncIterator[RunningGateway]:
        """Runs both behind a gateway."""
        async with scripted_engine(self.script) as first, scripted_engine(self.script) as second:
            self.engines = [first, second]
            for engine in self.engines:
                engine.generated_tokens = generated_tokens
            async with running_gateway(fleet_of([first.url, second.url]), Limits(retry_share=1.0)) as running:
                yield running


async def _seconds_of(running: RunningGateway, body: object, path: str = "/v1/chat/completions") -> float:
    loop = asyncio.get_running_loop()
    started = loop.time()
    connection = await RawConnection.connect(running.url)
    await connection.send(post_request(body, path=path))
    assert (await connection.read_response(patience_seconds=900.0)).status == 200
    await connection.close()
    return loop.time() - started


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_a_hung_engine_is_left_whatever_the_request_says_of_its_length(path: str, body: dict[str, Any]) -> None:
    async with TwoEngines().running() as running:
        assert FLOOR <= await _seconds_of(running, body, path) < 1.5 * FLOOR


async def test_a_hung_engine_is_ejected_by_plain_requests_alone() -> None:
    """Requests without a retry in the budget stay, and move when it has the next ones."""
    scene = TwoEngines()
    async with scene.running() as running:
        seconds = await asyncio.gather(*(_seconds_of(running, GOOD | {"user": f"{number}"}) for number in range(6)))
        assert max(seconds) < 4 * FLOOR
        assert scene.silent is not None
        index = scene.engines.index(scene.silent)
        assert running.gateway.stages.failures.describe(f"e-{index}/{index}/0")[0] is HealthState.EJECTED


@pytest.mark.parametrize("body", [GOOD, LONG])
async def test_an_engine_that_computes_is_waited_for(body: dict[str, Any]) -> None:
    async with TwoEngines(300.0, computes=True).running() as running:
        assert 300.0 <= await _seconds_of(running, body) < 301.0


async def test_an_engine_that_stops_in_the_middle_is_left() -> None:
    scene = TwoEngines(100.0, computes=True)

    async def stop() -> None:
        await asyncio.sleep(60.0)
        scene._computes = False

    async with scene.running() as running:
        stopping = asyncio.create_task(stop())
        assert 60.0 < await _seconds_of(running, GOOD) < 60.0 + 1.5 * FLOOR
        await stopping


@pytest.mark.parametrize(
    ("path", "body", "most"),
    [
        ("/v1/chat/completions", GOOD, 200.0),
        ("/v1/chat/completions", GOOD | {"max_tokens": 8}, FLOOR),
        ("/v1/audio/speech", {"model": "tiny", "input": "hi"}, 200.0),
        ("/v1/embeddings", {"model": "tiny", "input": "hi"}, FLOOR),
    ],
)
async def test_without_counters_an_answer_has_the_time_of_a_long_one(
    path: str, body: dict[str, Any], most: float
) -> None:
    async with TwoEngines().running(generated_tokens=None) as running:
        assert most <= await _seconds_of(running, body, path) < most + FLOOR


async def test_without_counters_answers_of_others_shorten_the_wait() -> None:
    scene = TwoEngines()

    async with scene.running(generated_tokens=None) as running:
        first = asyncio.create_task(_seconds_of(running, GOOD))
        await asyncio.sleep(0.5)
        answered = 0
        while answered < 16:
            _, waiting = await asyncio.wait([asyncio.create_task(_seconds_of(running, GOOD))], timeout=1.0)
            answered += not waiting
        assert await first < 3 * FLOOR
