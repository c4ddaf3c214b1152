"""Resumed streams at their edges: clients that stop reading, and connections that were idle."""

from typing import Any

import pytest

from fairlead.fleet.model import InstanceState
from fairlead.limits import Limits
from fairlead_testing.engines.scripted import EngineCall, HangUp, scripted_engine, token
from fairlead_testing.gateway.broken_streams import answer_of, send_part
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

PARTS = [[{"id": "x", **token("one ")}], [{"id": "y", **token("two", "stop")}]]
PLAIN: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "tell me a story"}]}
STARTING, READY = InstanceState.STARTING, InstanceState.READY
STREAM: dict[str, Any] = {**PLAIN, "max_tokens": 60, "temperature": 0, "stream": True}


async def test_engine_that_resumes_a_stream_is_not_blamed_for_a_client_that_never_reads() -> None:
    met: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        await call.start_stream()
        await call.event({"id": "x", **token("one ")})
        if len(met) == 1:
            raise HangUp
        while True:
            await call.event({"id": "x", **token("x" * 100_000)})

    async with gateway_of(script, script, limits=Limits(stream_idle_seconds=1.5)) as (running, *_):
        connection = await RawConnection.connect(running.url)
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket transport has it
        await connection.send(post_request(STREAM))
        decisions = running.gateway.decisions
        await wait_until(lambda: bool(decisions.latest(1)) and decisions.latest(1)[0].has_ended)
        (logged,) = decisions.latest(1)
        assert logged.has_ended
        assert len(logged.records) == 2
        assert logged.client_disconnected
        assert logged.error == "client-gone"
        breaker = running.gateway.stages.failures.outlier_detector
        assert not breaker._records[logged.records[-1].decision.chosen or ""].consecutive_failures
        connection.writer.transport.abort()


async def test_stream_is_resumed_over_a_new_connection_if_the_idle_one_is_stale() -> None:
    streams: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        if "stream" not in call.json:
            await call.respond({"choices": [{"index": 0, "message": {"content": "a"}, "text": "a"}]})
            return
        streams.append(call)
        if len(streams) == 2:
            raise HangUp  # as an engine that closes an idle connection at this moment
        await call.start_stream()
        await send_part(call, PARTS, 1 if len(streams) == 1 else 2)

    async with scripted_engine(script) as first, scripted_engine(script) as second:
        urls = [first.url, second.url]
        async with running_gateway(fleet_of(urls, states=[STARTING, READY])) as running:
            assert (await request(running.url, PLAIN)).status == 200
            running.gateway.update_fleet(fleet_of(urls, version=2, states=[READY, STARTING]))
            assert (await request(running.url, PLAIN)).status == 200
            running.gateway.update_fleet(fleet_of(urls, version=3))
            answer = await request(running.url, STREAM)
            assert answer.events[-1] == "[DONE]", answer.body
            assert len(streams) == 3
            assert running.gateway.telemetry.models[MODEL_KEY].continued == {"whole": 1}
            assert {load.inflight for load in running.loads().values()} == {0}


@pytest.mark.parametrize("in_stream", [False, True])
async def test_a_stream_is_resumed_by_an_engine_that_refuses_to_count_its_tokens(in_stream: bool) -> None:
    """The client has not asked for token counts, so it loses nothing by them."""
    streams: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        streams.append(call)
        if len(streams) > 1 and "stream_options" in call.json:
            refusal = {"error": {"message": "Unrecognized field: stream_options", "code": 400}}
            if not in_stream:
                await call.respond(refusal, "400 Bad Request")
                return
            await call.start_stream()
            await call.event(refusal)
            await call.chunk(b"")
            return
        await call.start_stream()
        await send_part(call, PARTS, 1 if len(streams) == 1 else 2)

    outcome = await answer_of([script] * 2, [], STREAM)
    assert outcome.text == "one two"
    assert ["stream_options" in call.json for call in streams] == [True, True, False]
    assert streams[2].json["continue_final_message"] is True
    assert streams[2].json["max_tokens"] == 59
    assert outcome.continued == {"whole": 1}
