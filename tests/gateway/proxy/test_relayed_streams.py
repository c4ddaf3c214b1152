"""Streams without a task: which ones, what they keep, and what frees them."""

import asyncio
import gc

import pytest

from fairlead_gateway.proxy.relayed_stream import RelayedStream
from fairlead_gateway.request_context import RequestContext
from fairlead_testing.engines.scripted import PausedStream, role, scripted_engine, streams, token, usage
from fairlead_testing.gateway.running_gateway import STREAM, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated


def _requests(running: RunningGateway) -> list[object]:
    return list(running.gateway._inflight.values())


@pytest.mark.parametrize(
    ("body", "more", "has_task"),
    [
        (STREAM, "", False),
        (STREAM, "x-request-timeout: 60\r\n", True),
        (STREAM | {"temperature": 0}, "", True),
    ],
    ids=["plain", "client-timeout", "resumable"],
)
@pytest.mark.parametrize("end", ["whole", "broken", "client-leaves"])
async def test_stream_has_a_task_only_if_it_needs_one(
    body: dict[str, object], more: str, has_task: bool, end: str
) -> None:
    gate = PausedStream(breaks=end == "broken")
    async with scripted_engine(gate.script) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(body, more=more))
        await connection.reader.readuntil(b'"content":"a"')
        (inflight,) = _requests(running)
        assert isinstance(inflight, RelayedStream) is not has_task
        assert isinstance(inflight, asyncio.Task) is has_task
        del inflight
        if end == "client-leaves":
            await connection.close()
        else:
            gate.go_on.set()
            rest = await connection.reader.read()
            assert (b"[DONE]" in rest) is (end == "whole")
            assert (b"stream_cut" in rest) is (end == "broken")
        await wait_until(lambda: not running.gateway.inflight_count())
        gate.go_on.set()
        assert {load.inflight for load in running.loads().values()} == {0}
        outcome = running.gateway.decisions.latest(1)[0]
        assert outcome.has_ended
        expected = {"whole": None, "broken": "cut", "client-leaves": "client-gone"}[end]
        assert (outcome.error, outcome.client_disconnected) == (expected, end == "client-leaves")
        await connection.close()


@pytest.mark.parametrize("end", ["whole", "broken", "client-leaves"])
async def test_nothing_of_a_stream_waits_for_the_garbage_collector(end: str) -> None:

    gc.collect()
    gc.disable()
    try:
        gate = PausedStream(breaks=end == "broken")
        async with scripted_engine(gate.script) as engine, running_gateway(fleet_of([engine.url])) as running:
            connection = await RawConnection.connect(running.url)
            await connection.send(post_request(STREAM))
            await connection.reader.readuntil(b'"content":"a"')
            assert _living() == 2
            if end == "client-leaves":
                await connection.close()
                await wait_until(lambda: not running.gateway.inflight_count())
            gate.go_on.set()
            await connection.reader.read()
            await wait_until(lambda: not running.gateway.listener.connections)
            await asyncio.sleep(0)
            assert _living() == 0
            await connection.close()
    finally:
        gc.enable()


def _living() -> int:
    return sum(isinstance(tracked, RelayedStream | RequestContext) for tracked in gc.get_objects())


@pytest.mark.parametrize(("answers", "is_known"), [(1, True), (2, False)])
async def test_time_per_token_is_that_of_one_answer(answers: int, is_known: bool) -> None:
    script = streams(role(), token("a"), token("b", "stop"), usage(7, 0, 2))
    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        await request(running.url, STREAM | {"n": answers})
        assert (running.gateway.decisions.latest(1)[0].itl_mean_seconds is not None) is is_known
