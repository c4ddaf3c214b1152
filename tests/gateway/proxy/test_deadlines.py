"""Deadlines, comments in silent streams, poison requests, and Retry-After."""

import asyncio
from dataclasses import replace

import pytest

from fairlead.fleet.model import InstanceState
from fairlead.limits import Limits
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.telemetry.status_types import HealthState
from fairlead_testing.engines.scripted import (
    EngineCall,
    HangUp,
    SilentEngine,
    hang_up,
    scripted_engine,
    silent,
    silent_after_token,
    streams,
    token,
    well_behaved,
)
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = GOOD | {"stream": True}


@pytest.mark.parametrize("text", ["0", "-1", "abc", "5 parsecs", "nan", "inf", "1e999", "", "9" * 40, "1m30"])
async def test_a_timeout_that_is_none_is_named(text: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, GOOD, more=f"x-request-timeout: {text}\r\n")
        assert (answer.status, answer.error["param"]) == (400, "x-request-timeout")
        assert not engine.calls


@pytest.mark.parametrize(("text", "most"), [("30", 30.0), ("1m30s", 90.0), ("2500ms", 2.5)])
async def test_an_engine_is_told_what_is_left_of_the_time(text: str, most: float) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, GOOD, more=f"x-request-timeout: {text}\r\n")).status == 200
        remaining = engine.calls[0].header("x-request-timeout")
        assert remaining is not None
        assert 0 < float(remaining) <= most


@pytest.mark.parametrize("body", [GOOD, STREAM])
async def test_a_client_deadline_before_the_first_byte_is_a_504_that_says_so(body: dict[str, object]) -> None:
    async with scripted_engine(silent) as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, body, more="x-request-timeout: 0.2\r\n")
        assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
        assert answer.fields["x-should-retry"] == "false"
        await wait_until(lambda: not engine.open)
        outcome = running.gateway.decisions.latest(1)[0]
        assert (outcome.status, outcome.client_disconnected) == (504, False)
        assert {load.inflight for load in running.loads().values()} == {0}


async def test_a_client_deadline_in_a_stream_ends_it_with_an_error_event_and_without_done() -> None:
    async with scripted_engine(silent_after_token) as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, STREAM, more="x-request-timeout: 0.5\r\n")
        assert answer.status == 200
        assert answer.complete
        assert '"code":"deadline_exceeded"' in answer.events[-1]
        assert "[DONE]" not in answer.events
        await wait_until(lambda: not engine.open)
        assert running.gateway.stages.failures.describe("e-0/0/0")[0] is HealthState.HEALTHY


async def test_a_plain_answer_has_a_deadline_of_its_own_and_a_stream_has_none() -> None:
    async def slow_stream(call: EngineCall) -> None:
        if not call.json.get("stream"):
            await call.wait_closed()
        await call.start_stream()
        for _ in range(8):
            await call.event(token("a"))
            await asyncio.sleep(0.05)
        await call.finish()

    limits = Limits(response_seconds=0.2)
    async with scripted_engine(slow_stream) as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        answer = await request(running.url, GOOD)
        assert (answer.status, answer.error["code"]) == (504, "answer_timeout")
        assert (await request(running.url, STREAM)).events[-1] == "[DONE]"


async def test_a_silent_stream_is_broken_off_with_its_reason() -> None:
    async with gateway_of(silent_after_token, limits=Limits(stream_silence_seconds=0.2)) as (running, *_):
        answer = await request(running.url, STREAM)
        assert '"code":"stream_timeout"' in answer.events[-1]
        assert "[DONE]" not in answer.events


async def test_a_first_token_that_does_not_come_is_asked_for_elsewhere() -> None:
    met: list[EngineCall] = []

    async def first_mute(call: EngineCall) -> None:
        met.append(call)
        await (silent if len(met) == 1 else well_behaved)(call)

    limits = Limits(first_token_min_seconds=0.2, first_token_factor=0.0)
    async with scripted_engine(first_mute) as first, scripted_engine(first_mute) as second:  # noqa: SIM117
        async with running_gateway(fleet_of([first.url, second.url]), limits) as running:
            answer = await request(running.url, STREAM)
            assert answer.events[-1] == "[DONE]"
            assert answer.fields["x-fairlead-reason"] == "retry-1"
            assert running.gateway.telemetry.models[MODEL_KEY].retries_by_reason == {"timeout": 1}


def silences(running: RunningGateway, instance: str) -> int:
    """Faults for silence since the last answer."""
    record = running.gateway.stages.failures.outlier_detector._records.get(instance)
    return record.consecutive_failures["timeout"] if record is not None else 0


SHORT = GOOD | {"max_tokens": 1}
HASTY = Limits(first_token_min_seconds=0.05, first_token_factor=0.0, ejection_seconds=600.0)


@pytest.mark.parametrize("body", [SHORT, STREAM])
async def test_the_only_engine_is_waited_for_and_its_silence_counts_as_one_fault(body: dict[str, object]) -> None:
    stuck = SilentEngine()

    async with scripted_engine(stuck.script) as engine, running_gateway(fleet_of([engine.url]), HASTY) as running:
        asked = asyncio.create_task(request(running.url, body))
        await wait_until(lambda: silences(running, "e-0/0/0") > 0)
        stuck.go_on.set()
        answer = await asked
        assert answer.status == 200
        assert "retry" not in answer.fields["x-fairlead-reason"]
        assert silences(running, "e-0/0/0") == 0


async def test_the_only_engine_is_waited_for_until_the_clients_deadline() -> None:
    async with scripted_engine(silent) as engine, running_gateway(fleet_of([engine.url]), HASTY) as running:
        answer = await request(running.url, STREAM, more="x-request-timeout: 0.5\r\n")
        assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
        assert silences(running, "e-0/0/0") == 1


async def test_the_only_engine_is_waited_for_until_the_deadline_of_first_tokens() -> None:
    limits = replace(HASTY, first_token_seconds=0.3)
    async with scripted_engine(silent) as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        answer = await request(running.url, STREAM)
        assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
        assert silences(running, "e-0/0/0") == 1


async def test_a_silent_engine_is_waited_for_while_the_others_sit_out() -> None:
    stuck = SilentEngine()

    async with scripted_engine(stuck.script) as first, scripted_engine() as second:  # noqa: SIM117
        async with running_gateway(fleet_of([first.url, second.url]), HASTY) as running:
            health, ids = running.gateway.stages.failures, ["e-0/0/0", "e-1/1/0"]
            for _ in range(3):
                health.outlier_detector.on_failure("e-1/1/0", "refused", running.gateway.runtime.clock.now(), ids)
            asked = asyncio.create_task(request(running.url, STREAM))
            await wait_until(lambda: silences(running, "e-0/0/0") > 0)
            stuck.go_on.set()
            assert (await asked).fields["x-fairlead-instance"] == "e-0/0/0"
            assert not second.calls


async def test_a_silent_engine_is_left_for_one_that_becomes_ready() -> None:
    async with scripted_engine(silent) as first, scripted_engine() as second:
        urls, waking = [first.url, second.url], [InstanceState.READY, InstanceState.STARTING]
        async with running_gateway(fleet_of(urls, states=waking), HASTY) as running:
            asked = asyncio.create_task(request(running.url, STREAM))
            await wait_until(lambda: silences(running, "e-0/0/0") > 0)
            running.gateway.update_fleet(fleet_of(urls))
            answer = await asked
            assert answer.events[-1] == "[DONE]"
            assert answer.fields["x-fairlead-instance"] == "e-1/1/0"


async def test_a_silent_engine_is_waited_for_when_there_may_be_no_other_attempt() -> None:
    stuck = SilentEngine()

    limits = replace(HASTY, max_attempts=1)
    async with scripted_engine(stuck.script) as first, scripted_engine(stuck.script) as second:  # noqa: SIM117
        async with running_gateway(fleet_of([first.url, second.url]), limits) as running:
            asked = asyncio.create_task(request(running.url, STREAM))
            await wait_until(lambda: silences(running, "e-0/0/0") + silences(running, "e-1/1/0") > 0)
            stuck.go_on.set()
            assert (await asked).status == 200
            assert len(first.calls) + len(second.calls) == 1


async def test_silence_is_no_fault_of_an_engine_while_no_retry_is_left() -> None:
    stuck = SilentEngine()
    refusals: list[CallerKey] = []

    def has_left(caller: CallerKey, now: float) -> bool:
        refusals.append(caller)
        return False

    async with scripted_engine(stuck.script) as first, scripted_engine(stuck.script) as second:  # noqa: SIM117
        async with running_gateway(fleet_of([first.url, second.url]), HASTY) as running:
            running.gateway.stages.forwarder.retry_budget.has_left = has_left  # type: ignore[method-assign]
            asked = asyncio.create_task(request(running.url, STREAM))
            await wait_until(lambda: len(refusals) > 2)
            assert silences(running, "e-0/0/0") + silences(running, "e-1/1/0") == 0
            stuck.go_on.set()
            assert (await asked).status == 200
            assert len(first.calls) + len(second.calls) == 1


async def test_a_stream_that_is_silent_gets_comments_between_its_events() -> None:
    go_on = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(token("a"))
        await call.chunk(b'data: {"choices":[{"index":0,"del')
        await go_on.wait()
        await call.chunk(b'ta":{"content":"b"},"finish_reason":"stop"}]}\n\n')
        await call.finish()

    limits = Limits(keep_alive_seconds=0.05)
    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(STREAM))
        assert (await connection.reader.readuntil(b": keep-alive\n\n")).count(b"data: ") == 1
        go_on.set()
        rest = await connection.reader.read()
        events = [part for part in rest.split(b"\n\n") if b"data: " in part]
        assert len(events) == 2
        assert b'"content":"b"' in events[0]
        assert events[1].endswith(b"data: [DONE]")
        await connection.close()


async def test_request_that_crashed_two_engines_meets_no_third_and_is_refused_later() -> None:
    async def script(call: EngineCall) -> None:
        if b"poison" in call.body:
            raise HangUp
        await well_behaved(call)

    poison = GOOD | {"messages": [{"role": "user", "content": "poison"}]}
    async with scripted_engine(script) as a, scripted_engine(script) as b, scripted_engine(script) as c:
        engines = [a, b, c]
        async with running_gateway(fleet_of([engine.url for engine in engines])) as running:
            assert (await request(running.url, poison)).error["code"] == "engines_broke_off"
            for _ in range(5):
                answer = await request(running.url, poison)
                assert (answer.status, answer.error["code"]) == (422, "quarantined")
                assert answer.fields["x-should-retry"] == "false"
            assert sum(len(engine.calls) for engine in engines) == 2
            for number in range(20):
                good = GOOD | {"messages": [{"role": "user", "content": f"{number}"}]}
                assert (await request(running.url, good)).status == 200


async def test_a_request_that_kills_engines_in_its_stream_is_found_too() -> None:
    script = streams(token("a"), end=hang_up)
    async with scripted_engine(script) as first, scripted_engine(script) as second:  # noqa: SIM117
        async with running_gateway(fleet_of([first.url, second.url], preset="round-robin")) as running:
            for _ in range(2):
                assert '"code":"stream_cut"' in (await request(running.url, STREAM)).events[-1]
            assert (await request(running.url, STREAM)).status == 422
