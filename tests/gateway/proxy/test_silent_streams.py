"""Streams whose engine is silent: they wait while it lives, and go on elsewhere when it hangs."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.limits import Limits
from fairlead_gateway.resilience.worker.engine_progress import hang_seconds
from fairlead_testing.engines.scripted import EngineCall, event, scripted_engine, silent
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request

pytestmark = pytest.mark.simulated

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True, "temperature": 0}
WORDS = ["a", "b", "c", "d"]
Page = Callable[[EngineCall], Awaitable[None]]


def piece(text: str, position: int, finish: str | None = None, ids: list[int] | None = None) -> bytes:
    """Returns a chunk of one token, as vLLM sends it to a gateway."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    names = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    start: dict[str, Any] = {} if position or ids is None else {"prompt_token_ids": ids}
    return event(names | {"choices": [choice | {"token_ids": [100 + position]}]} | start)


class Engine:
    """An engine that is silent for a while behind two tokens of its first stream.

    page: answers its metrics page. health: answers its health check.
    """

    def __init__(self, silent_seconds: float, gap_seconds: float, page: Page, health: Page) -> None:
        self._silent_seconds, self._gap_seconds = silent_seconds, gap_seconds
        self._page, self._health = page, health
        self.streams = 0
        self.counted = 0

    async def __call__(self, call: EngineCall) -> None:
        if call.path.endswith("/metrics"):
            await self._page(call)
        elif call.path == "/health":
            await self._health(call)
        else:
            await self._stream(call)

    async def _stream(self, call: EngineCall) -> None:
        self.streams += 1
        await call.start_stream()
        known = (call.json.get("kv_transfer_params") or {}).get("prompt_token_ids")
        ids = known or [1, 2, 3]
        for position in range(len(ids) - 3, len(WORDS)):
            if position == 2 and not known:
                await asyncio.sleep(self._silent_seconds)
            is_last = position == len(WORDS) - 1
            chunk = piece(WORDS[position], position, "stop" if is_last else None, None)
            if position == len(ids) - 3:
                chunk = piece(WORDS[position], 0, "stop" if is_last else None, ids).replace(
                    b"[100]", b"[%d]" % (100 + position)
                )
            await call.chunk(chunk)
            await asyncio.sleep(self._gap_seconds)
        await call.finish()


def shows(running: int | None, generated: Callable[[], int] | None, usage: Callable[[], float] | None = None) -> Page:
    """Returns a metrics page of vLLM."""

    async def page(call: EngineCall) -> None:
        lines = [] if running is None else [f"vllm:num_requests_running {running}"]
        if generated is not None:
            lines += [f"vllm:prompt_tokens_total {generated()}", f"vllm:generation_tokens_total {generated()}"]
        if usage is not None:
            lines.append(f"vllm:kv_cache_usage_perc {usage()}")
        await call.respond(("\n".join(lines) + "\n").encode(), kind="text/plain; version=0.0.4")

    return page


def rising() -> Callable[[], int]:
    count = iter(range(10_000))
    return lambda: next(count)


async def not_found(call: EngineCall) -> None:
    await call.respond({"detail": "Not Found"}, "404 Not Found")


async def healthy(call: EngineCall) -> None:
    await call.respond(b"", kind="text/plain")


STILL = shows(1, lambda: 7, lambda: 0.5)
ALIVE: dict[str, tuple[Page, Page, str]] = {
    "it counts tokens": (shows(1, rising()), healthy, "vllm"),
    "its memory fills": (shows(1, lambda: 7, rising()), healthy, "vllm"),
    "it runs nothing": (shows(0, lambda: 7), healthy, "vllm"),
    "it says not what it runs": (shows(None, lambda: 7), healthy, "sglang"),
    "no counters": (shows(1, None), healthy, "vllm"),
    "no page": (not_found, healthy, "sglang"),
    "a page between steps": (silent, healthy, "llamacpp"),
    "no kind": (silent, silent, "openai"),
}
HUNG: dict[str, tuple[Page, Page, str]] = {
    "nothing moves": (STILL, healthy, "vllm"),
    "it does not answer": (silent, silent, "vllm"),
}


@asynccontextmanager
async def gateway_before(kind: str, *engines: Engine) -> AsyncIterator[RunningGateway]:
    """Runs a gateway before engines of one kind."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(scripted_engine(engine)) for engine in engines]
        for engine in found:
            engine.scripts_metrics = True
        fleet = fleet_of([engine.url for engine in found])
        instances = tuple(replace(instance, engine=kind) for instance in fleet.instances[MODEL_KEY])
        yield await stack.enter_async_context(running_gateway(replace(fleet, instances={MODEL_KEY: instances})))


async def send_stream(running: RunningGateway) -> tuple[RawResponse, float]:
    loop = asyncio.get_running_loop()
    started = loop.time()
    connection = await RawConnection.connect(running.url)
    await connection.send(post_request(ASKED))
    answer = await connection.read_response(patience_seconds=5_000.0)
    await connection.close()
    return answer, loop.time() - started


def text_of(answer: RawResponse) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for data in answer.events
        if data != "[DONE]"
        for choice in json.loads(data).get("choices", ())
    )


@pytest.mark.parametrize("silent_seconds", [30.0, 590.0])
@pytest.mark.parametrize("name", ALIVE)
async def test_stream_of_an_engine_that_lives_waits(name: str, silent_seconds: float) -> None:
    page, health, kind = ALIVE[name]
    first, second = (Engine(silent_seconds, 0.0, page, health) for _ in range(2))
    async with gateway_before(kind, first, second) as running:
        answer, seconds = await send_stream(running)
        assert (answer.status, answer.complete, text_of(answer)) == (200, True, "abcd")
        assert silent_seconds <= seconds < silent_seconds + 5.0
        assert first.streams + second.streams == 1


@pytest.mark.parametrize("name", ["it counts tokens", "no page"])
async def test_silence_of_an_engine_that_lives_has_an_end(name: str) -> None:
    page, health, kind = ALIVE[name]
    engine = Engine(2_000.0, 0.0, page, health)
    async with gateway_before(kind, engine) as running:
        answer, seconds = await send_stream(running)
        assert seconds == pytest.approx(Limits().stream_silence_seconds, abs=6.0)
        assert "stream_timeout" in answer.events[-1]


@pytest.mark.parametrize("gap_seconds", [0.0, 0.02, 0.5, 2.0])
@pytest.mark.parametrize("name", HUNG)
async def test_stream_of_an_engine_that_hangs_goes_on_elsewhere(name: str, gap_seconds: float) -> None:
    page, health, kind = HUNG[name]
    engines = [Engine(2_000.0, gap_seconds, page, health) for _ in range(2)]
    async with gateway_before(kind, *engines) as running:
        answer, seconds = await send_stream(running)
        assert (answer.status, answer.complete, text_of(answer)) == (200, True, "abcd")
        assert b'"error"' not in answer.body
        assert seconds - 4 * gap_seconds <= hang_seconds(gap_seconds, 0.0, 5.0)
        assert [engine.streams for engine in engines] == [1, 1]


@pytest.mark.parametrize("name", HUNG)
async def test_stream_of_an_engine_that_hangs_waits_if_no_other_can_go_on(name: str) -> None:
    page, health, kind = HUNG[name]
    for silent_seconds in (60.0, 2_000.0):
        engine = Engine(silent_seconds, 0.0, page, health)
        async with gateway_before(kind, engine) as running:
            answer, seconds = await send_stream(running)
            if silent_seconds == 60.0:
                assert text_of(answer) == "abcd"
            else:
                assert seconds == pytest.approx(Limits().stream_idle_seconds, abs=6.0)
                assert "stream_timeout" in answer.events[-1]


@pytest.mark.parametrize(
    ("gap_seconds", "prefill_seconds", "expected"),
    [(0.0, 0.0, 5.0), (0.02, 0.0, 5.0), (0.5, 0.0, 10.0), (0.02, 4.0, 12.0), (1.0, 4.0, 20.0)],
)
def test_time_after_which_an_engine_hangs(gap_seconds: float, prefill_seconds: float, expected: float) -> None:
    assert hang_seconds(gap_seconds, prefill_seconds, 5.0) == expected
