"""The open-loop client against a scripted engine, over real sockets."""

import asyncio

import pytest
import uvloop

from fairlead.errors import Unavailable
from fairlead_cli.replay.client.open_loop_client import (
    GAVE_UP_ERROR,
    ClientRun,
    OpenLoopClient,
    PlannedRequest,
    ProgressCounts,
)
from fairlead_cli.replay.traffic import ReplayTarget, plan_requests
from fairlead_sim.workload.traces import TraceRequest
from fairlead_testing.engines.scripted import (
    EngineCall,
    HangUp,
    Script,
    ScriptedEngine,
    role,
    scripted_engine,
    token,
    usage,
)


async def tokens(call: EngineCall) -> None:
    """Sends ``max_tokens`` tokens, each in its own chunk."""
    await call.start_stream(more="x-fairlead-instance: main-0/1/0\r\nx-fairlead-reason: affinity\r\n")
    await call.event(role())
    for _ in range(call.json["max_tokens"]):
        await call.event(token(" abc"))
    await call.event(usage(len(call.json["messages"][0]["content"]) // 4, 512, call.json["max_tokens"]))
    await call.finish()


def requests(count: int, *, interval: float = 0.0, output: int = 3) -> list[TraceRequest]:
    return [TraceRequest(f"q{number}", number * interval, 600, output, (0, number + 1)) for number in range(count)]


def replay(script: Script, planned: list[TraceRequest], *, patience: float = 30.0) -> tuple[ClientRun, ScriptedEngine]:
    async def run_client() -> tuple[ClientRun, ScriptedEngine]:
        async with scripted_engine(script) as server:
            target = ReplayTarget(server.url, model="tiny")
            client = OpenLoopClient(target.host, target.port, patience_seconds=patience)
            return await client.run(plan_requests(planned, target, speed=1.0)), server

    return uvloop.run(run_client())


def test_results_have_tokens_instance_and_cached_tokens() -> None:
    run, server = replay(tokens, requests(20))
    assert [result.error for result in run.results] == [None] * 20
    for result in run.results:
        assert (result.output_tokens, result.cached_tokens, len(result.gaps)) == (3, 512, 2)
        assert (result.instance, result.reason) == ("main-0/1/0", "affinity")
        assert result.ttft_seconds is not None
        assert result.ttft_seconds > 0
    assert len(server.calls) == 20


def test_body_requests_stream_usage_and_exact_output_tokens() -> None:
    _, server = replay(tokens, requests(1, output=7))
    call, body = server.calls[0], server.calls[0].json
    assert body["stream_options"] == {"include_usage": True}
    assert (body["max_tokens"], body["ignore_eos"], body["stream"], body["model"]) == (7, True, True, "tiny")
    assert call.header("x-request-id") == "q0"


def test_connection_is_reused_after_a_complete_answer() -> None:
    run, server = replay(tokens, requests(3, interval=0.5))
    assert [result.error for result in run.results] == [None] * 3
    assert server.connections < 3


def test_slow_answer_delays_no_other_request() -> None:
    release: list[asyncio.Event] = []

    async def script(call: EngineCall) -> None:
        if not release:
            release.append(asyncio.Event())
            await release[0].wait()  # the first request gets its answer after the arrival of the last
        elif call.json["max_tokens"] == 9:
            release[0].set()
        await tokens(call)

    planned = [*requests(5), TraceRequest("last", 0.0, 600, 9, (0, 9))]
    run, _ = replay(script, planned)
    assert all(result.error is None for result in run.results)


def test_non_200_answer_is_an_error_with_its_message() -> None:
    async def script(call: EngineCall) -> None:
        await call.respond({"error": {"message": "no instance is ready"}}, "503 Service Unavailable")

    run, _ = replay(script, requests(2))
    assert {result.error for result in run.results} == {"HTTP 503: no instance is ready"}
    assert {result.status for result in run.results} == {503}


def test_connection_cut_in_mid_stream_keeps_the_first_token_time() -> None:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(role())
        await call.event(token(" abc"))
        raise HangUp

    run, _ = replay(script, requests(1))
    assert "lost" in (run.results[0].error or "")
    assert run.results[0].ttft_seconds is not None


def test_invalid_http_answer_is_an_error() -> None:
    async def script(call: EngineCall) -> None:
        await call.send(b"hello there\r\n\r\n")

    run, _ = replay(script, requests(1))
    assert "no HTTP answer" in (run.results[0].error or "")


def test_unanswered_request_is_given_up_after_the_patience() -> None:
    async def script(call: EngineCall) -> None:
        await asyncio.Event().wait()

    run, _ = replay(script, requests(2), patience=0.05)
    assert {result.error for result in run.results} == {GAVE_UP_ERROR}
    assert {result.finished_seconds for result in run.results} == {None}


async def test_closed_port_is_reported_before_sending() -> None:
    async def run_client() -> None:
        async with scripted_engine(tokens) as server:
            target = ReplayTarget(server.url, model="tiny")
        await OpenLoopClient(target.host, target.port).run(plan_requests(requests(1), target, speed=1.0))

    with pytest.raises(Unavailable, match="nothing answers"):
        await run_client()


async def test_progress_ends_with_all_requests_answered() -> None:
    progress: list[ProgressCounts] = []
    async with scripted_engine(tokens) as server:
        target = ReplayTarget(server.url, model="tiny")
        client = OpenLoopClient(target.host, target.port, on_progress=progress.append)
        await client.run(plan_requests(requests(4), target, speed=1.0))
    assert (progress[-1].answered, progress[-1].total, progress[-1].failed) == (4, 4, 0)


def test_empty_plan_ends_at_once() -> None:
    run, _ = replay(tokens, [])
    assert run.results == []


def test_due_time_is_arrival_divided_by_speed() -> None:
    target = ReplayTarget("http://127.0.0.1:1", model="tiny")
    planned: list[PlannedRequest] = plan_requests(requests(3, interval=2.0), target, speed=4.0)
    assert [request.due_seconds for request in planned] == [0.0, 0.5, 1.0]
