"""The end of a drain: what is left gets an error, and nothing is cut silently."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.http.sockets import ListenAddress, socket_url
from fairlead_gateway.messages import DRAIN_END_SECONDS
from fairlead_gateway.telemetry.status_types import HealthState
from fairlead_gateway.worker.server import PublicServer
from fairlead_testing.engines.scripted import (
    EngineCall,
    Script,
    ScriptedEngine,
    scripted_engine,
    silent,
    silent_after_token,
    streams,
    token,
    well_behaved,
)
from fairlead_testing.gateway.running_gateway import GOOD, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

CODE = "gateway_draining"


@dataclass(slots=True)
class Draining:
    """A gateway on a port of its own, whose drain runs by a manual clock."""

    running: RunningGateway
    engine: ScriptedEngine
    server: PublicServer
    clock: ManualClock
    url: str
    limits: Limits

    async def connect(self) -> RawConnection:
        return await RawConnection.connect(self.url)

    async def start_request(self, body: dict[str, Any]) -> RawConnection:
        """Sends a request over a connection of its own, and waits until it is in flight."""
        connection, before = await self.connect(), self.running.gateway.inflight_count()
        await connection.send(post_request(body, close=False))
        await wait_until(lambda: self.running.gateway.inflight_count() > before)
        return connection

    async def start_drain(self) -> "asyncio.Task[None]":
        drain = asyncio.create_task(self.server.drain())
        await wait_until(lambda: self.running.gateway.listener.draining)
        return drain

    async def outlast_drain(self) -> "asyncio.Task[None]":
        """Starts the drain, and lets its time pass."""
        drain = await self.start_drain()
        self.clock.advance(self.limits.drain_seconds)
        return drain


@asynccontextmanager
async def draining_gateway(script: Script, limits: Limits | None = None) -> AsyncIterator[Draining]:
    """Runs a gateway in front of one engine, with a clock that only the test moves."""
    limits = limits or Limits()

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        clock = ManualClock()
        running.gateway.runtime.now = clock.now
        public = ListenAddress("127.0.0.1", 0).bind(shared=True)
        server = PublicServer(running.gateway, public)
        await server.start()
        yield Draining(running, engine, server, clock, socket_url(public, secure=False), limits)
        assert {load.inflight for load in running.loads().values()} == {0}
        running.gateway.loop_lag.stop()


async def test_stream_that_outlasts_the_drain_is_not_cut_silently() -> None:
    async with draining_gateway(silent_after_token) as it:
        connection = await it.start_request(GOOD | {"stream": True})
        assert b"connection: close" not in await connection.reader.readuntil(b"\r\n\r\n")
        await connection.reader.readuntil(b'"content":"a"')
        drain = await it.outlast_drain()
        rest = await connection.reader.read()
        await connection.close()
        await drain
        error_event, end = rest.rsplit(b"data: ", 1)[1].split(b"\n\n")
        assert f'"code":"{CODE}"'.encode() in error_event
        assert b"the answer is incomplete" in error_event
        assert b"[DONE]" not in rest
        assert end == b"\r\n0\r\n\r\n"  # its framing is whole: no reset


def how_it_ended(rest: bytes) -> str:
    """Returns how a stream ended, by its last bytes."""
    if not rest.endswith(b"\n\n\r\n0\r\n\r\n"):
        return "cut"
    last = rest.rsplit(b"data: ", 1)[1]
    return "whole" if last.startswith(b"[DONE]") else "error event" if CODE.encode() in last else "cut"


async def test_forty_streams_of_a_drain_end_whole_or_with_an_error_event() -> None:
    go_on = asyncio.Event()

    async def script(call: EngineCall) -> None:
        if call.json["user"] == "lasts":
            await silent_after_token(call)
        else:
            await call.start_stream()
            await call.event(token("a"))
            await go_on.wait()
            await call.finish()

    async with draining_gateway(script) as it:
        users = ["ends", "lasts"] * 20
        streams = [await it.start_request(GOOD | {"stream": True, "user": user}) for user in users]
        for stream in streams:
            await stream.reader.readuntil(b'"content":"a"')
        drain = await it.start_drain()
        go_on.set()
        await wait_until(lambda: it.running.gateway.inflight_count() == 20)
        it.clock.advance(it.limits.drain_seconds)
        ends = Counter([how_it_ended(await stream.reader.read()) for stream in streams])
        for stream in streams:
            await stream.close()
        await drain
        assert ends == {"whole": 20, "error event": 20}


async def test_engine_is_not_blamed_for_a_stream_that_outlasts_the_drain() -> None:
    async with draining_gateway(silent_after_token, Limits(breaker_consecutive_faults=1)) as it:
        connection = await it.start_request(GOOD | {"stream": True, "temperature": 0})  # it could be resumed
        await connection.reader.readuntil(b'"content":"a"')
        drain = await it.outlast_drain()
        await connection.reader.read()
        await connection.close()
        await drain
        assert it.running.gateway.stages.failures.describe("e-0/0/0")[0] is HealthState.HEALTHY
        assert len(it.engine.calls) == 1  # none was asked for the rest


@pytest.mark.parametrize("is_warm", [False, True], ids=["task", "fast path"])
async def test_request_without_an_answer_at_the_end_of_a_drain_gets_503(is_warm: bool) -> None:
    async def script(call: EngineCall) -> None:
        await (silent(call) if call.json.get("user") == "slow" else well_behaved(call))

    async with draining_gateway(script) as it:
        if is_warm:  # an idle connection to the engine is what the fast path needs
            connection = await it.connect()
            await connection.send(post_request(GOOD, close=False))
            assert (await connection.read_response()).status == 200
            await connection.close()
        connection = await it.start_request(GOOD | {"user": "slow"})
        drain = await it.outlast_drain()
        answers = await connection.read_all_responses()
        await connection.close()
        await drain
        assert [(answer.status, answer.fields["connection"]) for answer in answers] == [(503, "close")]
        assert answers[0].json["error"]["code"] == CODE
        assert answers[0].fields["retry-after"] == "1"


async def test_request_that_is_read_at_the_end_of_a_drain_gets_503() -> None:
    async with draining_gateway(well_behaved) as it:
        connection = await it.connect()
        await connection.send(post_request(GOOD)[:-5])
        await wait_until(lambda: it.running.gateway.listener.count_busy() > 0)
        drain = await it.outlast_drain()
        answers = await connection.read_all_responses()
        await connection.close()
        await drain
        assert [(answer.status, answer.fields["connection"]) for answer in answers] == [(503, "close")]


async def test_pipelined_request_is_not_begun_when_the_drain_is_over() -> None:
    async with draining_gateway(silent_after_token) as it:
        connection = await it.start_request(GOOD | {"stream": True})
        await connection.reader.readuntil(b'"content":"a"')
        await connection.send(get_request("/readyz", close=False))
        drain = await it.outlast_drain()
        rest = await connection.reader.read()
        await connection.close()
        await drain
        assert rest.endswith(b"\r\n0\r\n\r\n")


async def test_idle_connection_is_closed_while_a_stream_drains() -> None:
    async with draining_gateway(silent_after_token, Limits(drain_idle_seconds=0.0)) as it:
        idle, stream = await it.connect(), await it.start_request(GOOD | {"stream": True})
        await wait_until(lambda: len(it.running.gateway.listener.connections) == 2)
        drain = await it.start_drain()
        assert await idle.reader.read() == b""
        assert not drain.done()
        await idle.close()
        await stream.close()
        await drain


async def test_client_that_reads_nothing_does_not_prolong_the_end_of_a_drain() -> None:
    flood = streams(*[token("a" * 65_536)] * 512, end=silent)

    async with draining_gateway(flood, Limits(write_high_bytes=1_024)) as it:
        connection = await it.connect()
        connection.writer.transport.pause_reading()
        await connection.send(post_request(GOOD | {"stream": True}, close=False))
        await wait_until(lambda: it.running.gateway.inflight_count() > 0)
        drain = await it.outlast_drain()
        await wait_until(lambda: it.running.gateway.inflight_count() == 0)
        it.clock.advance(DRAIN_END_SECONDS)
        await drain
        connection.writer.transport.abort()


async def test_drain_ends_early_on_demand() -> None:
    async with draining_gateway(silent_after_token) as it:
        connection = await it.start_request(GOOD | {"stream": True})
        await connection.reader.readuntil(b'"content":"a"')
        drain = await it.start_drain()
        it.server.end_drain()
        rest = await connection.reader.read()
        await connection.close()
        await drain
        assert CODE.encode() in rest
        assert it.clock.now() < it.limits.drain_seconds
