"""The life of a simulated engine: pauses, sleep, drains and injected faults."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.errors import BadInput
from fairlead_sim.runtime import fault_injection
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_sim.runtime.simulated_engine import MEMORY_PARTS, SleepMode
from fairlead_sim.server.process import RunningEngine
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.sim.engines import running_engine, running_engines
from fairlead_testing.transcripts.recording import HttpResponse, RecordedRequest
from fairlead_testing.transcripts.replay import (
    ClientConnection,
    get_request,
    open_client,
    post_request,
    read_metric,
    send_request,
    wait_for_metric,
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

    await wait_for_value(current, lambda reading: reading == value, name)


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
        engine_state = await state(engine)
        assert (engine_state["running"], engine_state["waiting"], engine_state["inside"]) == (0, 0, 0)


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
            cached_tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            return cached_tokens

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
            cached_tokens: int = usage["prompt_tokens_details"]["cached_tokens"]
            return cached_tokens

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
    status = (await send_request(engine.url.removeprefix("http://"), get_request("/is_sleeping"))).json()
    return bool(status["is_sleeping"])


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


ASK = {"prompt": "x", "max_tokens": 20}


@asynccontextmanager
async def engine_with_address() -> AsyncIterator[tuple[RunningEngine, str]]:
    async with running_engine() as engine:
        yield engine, engine.url.removeprefix("http://")


async def arm(authority: str, **fault: Any) -> HttpResponse:
    return await send_request(authority, post_request("/sim/faults", fault))


async def post_fault(authority: str, **body: Any) -> bytes:
    """Returns everything that an engine sends for one request until it closes or the answer is
    whole.
    """
    async with open_client(authority) as connection:
        await connection.send(post_request("/v1/completions", {**ASK, **body}).to_bytes(authority))
        try:
            while await connection.read_more():
                if connection.received.endswith(b"0\r\n\r\n"):
                    break
        except ConnectionError:
            pass
        return bytes(connection.received)


async def test_refused_connections_get_not_a_byte() -> None:
    async with engine_with_address() as (_, authority):
        await arm(authority, kind="refuse", count=2)
        assert [await post_fault(authority) for _ in range(2)] == [b"", b""]
        assert (await send_request(authority, get_request("/health"))).status == 200


async def test_a_hanging_engine_takes_requests_and_never_answers() -> None:
    async with engine_with_address() as (engine, authority):
        await arm(authority, kind="hang", count=1)
        async with open_client(authority) as stuck:
            await stuck.send(post_request("/v1/completions", ASK).to_bytes(authority))
            assert (await send_request(authority, post_request("/v1/completions", ASK))).status == 200
            assert (bytes(stuck.received), stuck.is_closed) == (b"", False)
        assert engine.app.requests_seen == 1


@pytest.mark.parametrize(("kind", "closed"), [("hang", False), ("refuse", True)])
async def test_connections_that_are_already_open_hang_and_break_as_well(kind: str, closed: bool) -> None:
    async with engine_with_address() as (_, authority), open_client(authority) as pooled:
        await pooled.send(get_request("/health").to_bytes(authority))
        await pooled.read_response()
        await pooled.send(post_request("/sim/faults", {"kind": kind}).to_bytes(authority))
        await pooled.read_response()
        await pooled.send(post_request("/v1/completions", ASK).to_bytes(authority))
        if closed:
            with pytest.raises((EOFError, ConnectionError)):
                await pooled.read_response()
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pooled.read_more(), 0.2)


async def test_a_cut_stream_ends_behind_some_tokens_without_an_end() -> None:
    async with engine_with_address() as (engine, authority):
        await arm(authority, kind="cut", after=4, count=1)
        broken = await post_fault(authority, stream=True)
        assert broken.count(b"data: {") == 4
        assert b"[DONE]" not in broken
        await wait_for_value(lambda: _inside(engine), lambda inside: inside == 0, "answers inside")
        assert (await post_fault(authority, stream=True)).endswith(b"0\r\n\r\n")


async def _inside(engine: RunningEngine) -> float:
    return len(engine.engine.responses)


async def test_garbage_is_rejected() -> None:
    async with engine_with_address() as (_, authority):
        await arm(authority, kind="garbage", count=1)
        assert not (await post_fault(authority)).startswith(b"HTTP/")


async def test_a_wrong_content_type_and_an_error_status() -> None:
    async with engine_with_address() as (_, authority):
        await arm(authority, kind="content-type", count=1)
        await arm(authority, kind="error", status=502, count=1)
        page = await send_request(authority, post_request("/v1/completions", ASK))
        assert page.fields["content-type"].startswith("text/html")
        assert (await send_request(authority, post_request("/v1/completions", ASK))).status == 502
        assert (await send_request(authority, get_request("/health"))).status == 200


async def test_a_share_hits_some_requests_and_a_fault_can_be_cleared() -> None:
    async with engine_with_address() as (_, authority):
        await arm(authority, kind="error", share=0.5)
        statuses = {(await send_request(authority, post_request("/v1/completions", ASK))).status for _ in range(40)}
        assert statuses == {200, 500}
        cleared = await send_request(authority, RecordedRequest("DELETE", "/sim/faults", (("Host", ""),), b""))
        assert cleared.json()["armed"] == []
        assert {(await send_request(authority, post_request("/v1/completions", ASK))).status for _ in range(10)} == {
            200
        }


async def test_a_slow_engine_takes_longer_steps_until_the_time_is_over() -> None:
    async with engine_with_address() as (engine, authority):
        core = engine.engine.drivers[0].core
        usual = core.profile.weights_seconds
        await arm(authority, kind="slow", factor=4, seconds=0.2)
        assert core.profile.weights_seconds == pytest.approx(4 * usual)

        async def weights() -> float:
            return core.profile.weights_seconds

        await wait_for_value(weights, lambda seen: seen == pytest.approx(usual), "the step's length")


async def test_engine_with_a_hung_core_is_healthy_and_sends_no_token_until_it_recovers() -> None:
    async with (
        engine_with_address() as (engine, authority),
        open_client(authority) as stream,
        open_client(authority) as late,
    ):
        body = {**ASK, "max_tokens": 20_000, "stream": True, "ignore_eos": True}
        await stream.send(post_request("/v1/completions", body).to_bytes(authority))
        await stream.read_until(b"text")
        assert (await arm(authority, kind="core-hung")).status == 200
        tokens = await read_metric(authority, "vllm:generation_tokens_total")
        await late.send(post_request("/v1/completions", ASK).to_bytes(authority))
        await wait_for_value(lambda: _inside(engine), lambda inside: inside == 2, "answers inside")
        for _ in range(5):
            assert (await send_request(authority, get_request("/health"))).status == 200
            assert await read_metric(authority, "vllm:generation_tokens_total") == tokens
        await send_request(authority, RecordedRequest("DELETE", "/sim/faults", (("Host", ""),), b""))
        answer = await late.read_response()
        assert (answer.status, answer.json()["usage"]["completion_tokens"]) == (200, 20)
        await wait_for_metric(authority, lambda generated: generated > tokens + 20, "vllm:generation_tokens_total")


async def test_a_dead_core_is_reported_and_the_other_engines_go_on() -> None:
    async with running_engines(3) as (first, second, third):
        authority, two, other = (engine.url.removeprefix("http://") for engine in (first, second, third))
        async with open_client(authority) as stream:
            body = {**ASK, "max_tokens": 20_000, "stream": True, "ignore_eos": True}
            await stream.send(post_request("/v1/completions", body).to_bytes(authority))
            await stream.read_until(b"text")
            await arm(authority, kind="core-dead")
            answer = await stream.read_response()
            assert answer.events()[-2]["error"]["code"] == 500
            await first.wait_gone()
        assert await post_fault(two) != b""
        with pytest.raises((EOFError, ConnectionError)):
            await arm(two, kind="die")
        await second.wait_gone()
        with pytest.raises(ConnectionError):
            await send_request(two, get_request("/health"))
        assert (await send_request(other, get_request("/health"))).status == 200


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ({"kind": "sulk"}, "kind"),
        ({"kind": "cut", "after": "x"}, "after"),
        ({"kind": "cut", "often": 1}, "often"),
        ({"kind": "slow", "factor": 0}, "factor"),
        ({"kind": "error", "status": 200}, "status"),
    ],
)
def test_a_wrong_fault_is_refused_by_its_field(fault: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        fault_injection.fault_from_mapping(fault)
    assert caught.value.field == field


def test_the_command_line_takes_faults_as_kind_and_values() -> None:
    fault = fault_injection.parse_fault("cut,after=9,share=0.25,count=3,everywhere=true")
    assert (fault.kind, fault.after, fault.share, fault.count, fault.everywhere) == ("cut", 9, 0.25, 3, True)
    with pytest.raises(BadInput):
        fault_injection.parse_fault("cut,after")


@pytest.mark.sockets  # the real clock is the subject
async def test_the_clock_is_monotonic_here() -> None:
    """Arrivals are given in the monotonic clock that steps are timed in."""
    before = time.monotonic()
    async with engine_with_address() as (engine, authority):
        await send_request(authority, post_request("/v1/completions", ASK))
        page = (await send_request(authority, get_request("/metrics"))).body.decode()
        (line,) = (each for each in page.splitlines() if each.startswith("vllm:e2e_request_latency_seconds_sum"))
        assert 0 < float(line.rpartition(" ")[2]) <= time.monotonic() - before
        assert engine.engine.drivers[0].skipped_seconds == 0
