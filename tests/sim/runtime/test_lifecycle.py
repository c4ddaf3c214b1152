"""Requests whose clients leave, full queues, and sleep, pause, reset, abort and drain."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_sim.server.process import RunningEngine
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.recording import HttpResponse
from fairlead_testing.transcripts.replay import (
    ClientConnection,
    get_request,
    open_client,
    post_request,
    read_metric,
    send_request,
    wait_for_value,
)

pytestmark = pytest.mark.simulated

ONE_AT_A_TIME = EngineSettings(profile=replace(builtin_profile("tiny-cpu"), max_sequences=1))
LONG = 20_000


@asynccontextmanager
async def engine_with_stack(
    settings: EngineSettings | None = None,
) -> AsyncIterator[tuple[RunningEngine, AsyncExitStack]]:
    async with running_engine(settings) as engine, AsyncExitStack() as stack:
        yield engine, stack


async def begin(engine: RunningEngine, stack: AsyncExitStack, tokens: int, **more: Any) -> ClientConnection:
    """Sends a request on its own connection, which stays open."""
    authority = engine.url.removeprefix("http://")
    connection = await stack.enter_async_context(open_client(authority))
    body = {"prompt": "Once upon a time", "max_tokens": tokens, "stream": True, **more}
    await connection.send(post_request("/v1/completions", body).to_bytes(authority))
    return connection


async def call(engine: RunningEngine, target: str, body: object = None) -> Any:
    return (await send_request(engine.url.removeprefix("http://"), post_request(target, body))).json()


async def state(engine: RunningEngine) -> Any:
    return (await send_request(engine.url.removeprefix("http://"), get_request("/sim/state"))).json()


async def becomes(engine: RunningEngine, name: str, value: int) -> None:
    async def current() -> float:
        return float((await state(engine))[name])

    await wait_for_value(current, lambda found: found == value, name)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot_for_the_one_who_waits(stream: bool) -> None:
    async with engine_with_stack(ONE_AT_A_TIME) as (engine, stack):
        first = await begin(engine, stack, LONG, stream=stream)
        await becomes(engine, "running", 1)
        second = await begin(engine, stack, 3)
        await becomes(engine, "waiting", 1)
        assert b"text" not in second.received
        await first.close()
        assert (await second.read_response()).events()[-1] == "[DONE]"
        found = await state(engine)
        assert (found["running"], found["waiting"], found["inside"]) == (0, 0, 0)


async def test_a_client_that_leaves_while_it_waits_is_never_computed() -> None:
    async with engine_with_stack(ONE_AT_A_TIME) as (engine, stack):
        first = await begin(engine, stack, LONG)
        waits = await begin(engine, stack, 7)
        await becomes(engine, "waiting", 1)
        await waits.close()
        await becomes(engine, "waiting", 0)
        await first.close()
        await becomes(engine, "running", 0)
        assert (await state(engine))["ranks"][0]["prompt_tokens_total"] == len(
            engine.engine.tokenizer.encode("Once upon a time")
        )


async def test_a_full_queue_refuses_plain_with_503_and_streams_in_their_first_event() -> None:
    async with engine_with_stack(EngineSettings(max_queued_requests=2)) as (engine, stack):
        for _ in range(2):
            await begin(engine, stack, LONG)
        await becomes(engine, "inside", 2)
        plain = await (await begin(engine, stack, 1, stream=False)).read_response()
        assert (plain.status, plain.json()["error"]["type"]) == (503, "Service Unavailable")
        assert "retry-after" not in plain.fields
        stream = await (await begin(engine, stack, 1)).read_response()
        error, done = stream.events()
        assert (stream.status, error["error"]["code"], done) == (200, 503, "[DONE]")
        assert await read_metric(engine.url.removeprefix("http://"), "vllm:admission_rejections_total") == 2


async def test_queued_tokens_are_limited_too() -> None:
    async with engine_with_stack(EngineSettings(max_queued_tokens=100)) as (engine, stack):
        await begin(engine, stack, LONG, prompt=[9] * 60)
        await becomes(engine, "inside", 1)
        assert (await (await begin(engine, stack, 1, prompt=[9] * 60, stream=False)).read_response()).status == 503
        assert (await (await begin(engine, stack, 1, prompt=[9] * 30, stream=False)).read_response()).status == 200


def test_priority_scheduling_takes_the_smaller_number_first() -> None:
    async def order(scheduling: str) -> list[str]:
        async with running_engine(replace(ONE_AT_A_TIME, scheduling=scheduling)) as engine, AsyncExitStack() as stack:
            blocker = await begin(engine, stack, LONG)
            await becomes(engine, "running", 1)
            ended: list[str] = []

            async def watch(name: str, priority: int) -> None:
                connection = await begin(engine, stack, 2, priority=priority)
                await connection.read_response()
                ended.append(name)

            late = asyncio.create_task(watch("late", 5))
            await becomes(engine, "waiting", 1)
            soon = asyncio.create_task(watch("soon", -5))
            await becomes(engine, "waiting", 2)
            await blocker.close()
            await asyncio.gather(late, soon)
            return ended

    assert run_async(order("priority")) == ["soon", "late"]
    assert run_async(order("fcfs")) == ["late", "soon"]


async def test_sleep_holds_requests_until_the_engine_wakes() -> None:
    async with engine_with_stack() as (engine, stack):
        assert await call(engine, "/sleep?level=1") == {"status": "sleeping", "level": 1}
        held = await begin(engine, stack, 2)
        await becomes(engine, "held", 1)
        assert (await state(engine))["running"] == 0
        assert (await send_request(engine.url.removeprefix("http://"), get_request("/health"))).status == 200
        assert await call(engine, "/wake_up") == {"status": "awake", "tags": None}
        assert (await held.read_response()).events()[-1] == "[DONE]"


@pytest.mark.parametrize(("level", "cached"), [(0, 48), (1, 0), (2, 0)])
async def test_sleep_from_level_one_on_loses_the_cache(level: int, cached: int) -> None:
    async with engine_with_stack() as (engine, _):
        body = {"prompt": [9] * 50, "max_tokens": 1}
        await call(engine, "/v1/completions", body)
        await call(engine, f"/sleep?level={level}")
        await call(engine, "/wake_up")
        usage = (await call(engine, "/v1/completions", body))["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == cached


async def test_pause_keep_freezes_streams_and_resume_goes_on() -> None:
    async with engine_with_stack() as (engine, stack):
        stream = await begin(engine, stack, 300)
        await stream.read_until(b"text")
        assert await call(engine, "/pause?mode=keep&clear_cache=false") == {"status": "paused"}
        steps = (await state(engine))["ranks"][0]["steps_total"]
        newcomer = await begin(engine, stack, 1)
        await becomes(engine, "held", 1)
        assert (await state(engine))["ranks"][0]["steps_total"] == steps
        await call(engine, "/resume")
        assert len((await stream.read_response()).events()) == 301
        assert len((await newcomer.read_response()).events()) == 2


async def test_pause_wait_answers_when_everything_has_finished() -> None:
    async with engine_with_stack() as (engine, stack):
        stream = await begin(engine, stack, 100)
        await stream.read_until(b"text")
        assert await call(engine, "/pause?mode=wait") == {"status": "paused"}
        assert engine.engine.unfinished == 0
        assert len((await stream.read_response()).events()) == 101


async def test_pause_abort_ends_streams_properly_and_counts_them() -> None:
    async with engine_with_stack() as (engine, stack):
        stream = await begin(engine, stack, LONG)
        await stream.read_until(b"text")
        await call(engine, "/pause?mode=abort")
        final, done = (await stream.read_response()).events()[-2:]
        assert (final["choices"][0]["finish_reason"], done) == ("abort", "[DONE]")
        page = (await send_request(engine.url.removeprefix("http://"), get_request("/metrics"))).body.decode()
        (line,) = (each for each in page.splitlines() if "request_success_total{" in each and '"abort"' in each)
        assert line.endswith(" 1.0")


async def test_reset_of_the_prefix_cache_says_in_the_body_whether_it_was_done() -> None:
    async with engine_with_stack() as (engine, stack):
        assert await call(engine, "/reset_prefix_cache") == {"success": True}
        stream = await begin(engine, stack, 400)
        await stream.read_until(b"text")
        assert await call(engine, "/reset_prefix_cache") == {"success": False}
        assert await call(engine, "/reset_prefix_cache?reset_running_requests=true") == {"success": True}
        assert len((await stream.read_response()).events()) == 401


async def test_requests_are_aborted_by_id() -> None:
    async with engine_with_stack() as (engine, stack):
        mine = await begin(engine, stack, LONG, request_id="mine")
        other = await begin(engine, stack, 200)
        await becomes(engine, "running", 2)
        answer = await call(engine, "/abort_requests", {"request_ids": ["cmpl-mine", "nobody"]})
        assert answer == {"status": "aborted", "aborted": 2}
        assert (await mine.read_response()).events()[-2]["choices"][0]["finish_reason"] == "abort"
        assert (await other.read_response()).events()[-2]["choices"][0]["finish_reason"] == "length"


async def test_adapters_come_and_go_and_do_not_share_blocks() -> None:
    async with engine_with_stack() as (engine, _):

        async def cached(model: str) -> int:
            answer = await call(engine, "/v1/completions", {"model": model, "prompt": [9] * 50, "max_tokens": 1})
            assert answer["model"] == model
            found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            return found

        async def load(path: str, *, in_place: bool = False) -> HttpResponse:
            body = {"lora_name": "a", "lora_path": path, "load_inplace": in_place}
            return await send_request(engine.url.removeprefix("http://"), post_request("/v1/load_lora_adapter", body))

        assert await cached("sim") == 0
        assert (await load("/a")).status == 200
        assert (await load("/a")).status == 400
        assert [await cached("a"), await cached("a"), await cached("sim")] == [0, 48, 48]
        assert (await load("/b", in_place=True)).status == 200
        assert await cached("a") == 0
        await send_request(
            engine.url.removeprefix("http://"), post_request("/v1/unload_lora_adapter", {"lora_name": "a"})
        )
        gone = await call(engine, "/v1/completions", {"model": "a", "prompt": "x"})
        assert gone["error"]["code"] == 404


async def test_ranks_have_caches_of_their_own_and_the_header_picks_one() -> None:
    async with engine_with_stack(EngineSettings(data_parallel=2)) as (engine, _):
        authority = engine.url.removeprefix("http://")

        async def cached(rank: int) -> int:
            request = post_request("/v1/completions", {"prompt": [9] * 50, "max_tokens": 1})
            pinned = replace(request, headers=(*request.headers, ("X-data-parallel-rank", str(rank))))
            usage = (await send_request(authority, pinned)).json()["usage"]
            found: int = usage["prompt_tokens_details"]["cached_tokens"]
            return found

        assert [await cached(0), await cached(1), await cached(0), await cached(1)] == [0, 0, 48, 48]
        page = (await send_request(authority, get_request("/metrics"))).body.decode()
        assert 'vllm:num_requests_running{engine="1",model_name="sim"}' in page


async def test_a_drain_finishes_what_runs_and_counts_who_comes_after() -> None:
    async with running_engine() as engine, AsyncExitStack() as stack:
        stream = await begin(engine, stack, 200)
        await stream.read_until(b"text")
        leaving = asyncio.create_task(engine.stop(60.0))
        await becomes(engine, "draining", 1)
        late = await (await begin(engine, stack, 1, stream=False)).read_response()
        assert late.json()["error"]["message"] == "cannot schedule new futures after shutdown"
        assert (await state(engine))["requests_while_draining"] == 1
        assert len((await stream.read_response()).events()) == 201
        await leaving
