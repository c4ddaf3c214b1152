"""Responses that engines never complete, in large and tiny parts: memory and turns are bounded."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Instance
from fairlead.limits import Limits
from fairlead_gateway.dialects.table import DIALECTS
from fairlead_gateway.runtime import BufferedBytes, ResponseMemory, WorkerRuntime
from fairlead_gateway.upstream.connection import EngineConnection, UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool, call_engine
from fairlead_gateway.upstream.response import EngineResponse
from fairlead_testing.engines.scripted import EngineCall, Script, scripted_engine, streams, token
from fairlead_testing.gateway.running_gateway import GOOD, STREAM, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.simulated.event_loop import running_clock
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

PART = 100_000
MAX_BYTES = 2 * PART + 50_000  # of the one namespace of these tests, which has half of all


async def test_tiny_chunks_of_an_engine_take_no_more_memory_than_large_ones() -> None:
    runtime = WorkerRuntime(running_clock(), Limits(), asyncio.get_running_loop())
    response = EngineResponse(
        runtime,
        stream_requested=False,
        strip_usage=False,
        is_passthrough=False,
        on_silence=lambda: 0.0,
    )
    response.on_head(200, {b"content-type": b"application/json"})
    tracemalloc.start()
    for number in range(PART):
        response.on_body([b"%02x" % (number % 200)], False)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(response.buffered_body) == 2 * PART
    assert used < 4 * PART


@asynccontextmanager
async def _stalled_responses(
    start: Script, body: dict[str, object]
) -> AsyncIterator[tuple[RunningGateway, list[RawConnection], list[EngineCall]]]:
    calls: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        await start(call)
        calls.append(call)
        await call.wait_closed()

    limits = Limits(buffered_responses_bytes=2 * MAX_BYTES)
    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        memory = running.gateway.runtime.response_memory
        clients: list[RawConnection] = []
        for number in (1, 2):
            clients.append(await RawConnection.connect(running.url))
            await clients[-1].send(post_request(body))
            await wait_until(lambda number=number: memory.used_bytes >= number * PART)  # type: ignore[misc]
        clients.append(await RawConnection.connect(running.url))
        await clients[-1].send(post_request(body))
        yield running, clients, calls
        for client in clients:
            await client.close()
        await wait_until(lambda: memory.used_bytes == 0)


async def test_plain_response_beyond_the_memory_of_all_is_passed_on_as_it_comes() -> None:
    text = json.dumps({"object": "chat.completion", "text": "x" * PART}).encode()

    async def start(call: EngineCall) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(text))
        await call.send(text[:-1])

    async with _stalled_responses(start, GOOD) as (running, clients, calls):
        await wait_until(lambda: len(calls) == 3)
        await calls[2].send(text[-1:])
        response = await clients[2].read_response()
        assert (response.status, response.body) == (200, text)
        assert running.gateway.runtime.response_memory.used_bytes < MAX_BYTES


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(streams(token("a"), b"data: " + b"x" * PART, end=None), id="event-without-end"),
        pytest.param(streams(token("x" * PART, "stop"), end=None), id="last-event-held-for-a-usage"),
    ],
)
async def test_streams_of_which_much_is_held_fill_no_memory_together(start: Script) -> None:
    async with _stalled_responses(start, STREAM) as (running, clients, _):
        response = await clients[2].read_response()
        assert response.status == 503 or b"stream_gateway_full" in response.body
        assert running.gateway.runtime.response_memory.used_bytes < MAX_BYTES


async def test_engine_of_a_stream_is_not_blamed_when_the_gateway_lacks_memory() -> None:
    async with _stalled_responses(streams(token("a"), b"data: " + b"x" * PART, end=None), STREAM) as (
        running,
        clients,
        _,
    ):
        await clients[2].read_response()
        for _ in range(3):
            client = await RawConnection.connect(running.url)
            await client.send(post_request(STREAM))
            await client.read_response()
            await client.close()
        detector = running.gateway.stages.failures.outlier_detector
        assert not detector._records["e-0/0/0"].consecutive_failures
        assert not detector.unhealthy


async def test_engine_of_a_plain_error_is_not_blamed_when_the_gateway_lacks_memory() -> None:
    runtime = WorkerRuntime(running_clock(), Limits(buffered_responses_bytes=PART), asyncio.get_running_loop())
    runtime.response_memory.add("other", PART)
    verdicts: list[UpstreamError | None] = []
    response = EngineResponse(
        runtime,
        stream_requested=False,
        strip_usage=False,
        is_passthrough=False,
        on_silence=lambda: 0.0,
        on_verdict=verdicts.append,
    )
    response.on_head(500, {})
    response.on_body([b"x" * 20_000], False)
    assert [error and error.cause for error in verdicts] == ["gateway-full"]


@pytest.mark.parametrize("size", [13, 1_000, 100_000, 3_000_000])
async def test_opening_that_goes_on_for_ever_is_passed_on_and_its_bytes_count(size: int) -> None:
    runtime = WorkerRuntime(running_clock(), Limits(), asyncio.get_running_loop())
    verdicts: list[UpstreamError | None] = []
    response = EngineResponse(
        runtime,
        stream_requested=True,
        strip_usage=False,
        is_passthrough=False,
        on_silence=lambda _: 0.0,
        on_verdict=verdicts.append,
    )
    response.grammar = DIALECTS["/v1/messages"].grammar
    response.on_head(200, {b"content-type": b"text/event-stream"})
    opening = b'event: message_start\ndata: {"type":"message_start","x":"%b"}\n\n'
    response.on_body([opening % b""], False)
    most = 0
    while not verdicts:
        response.on_body([opening % (b"x" * size)], False)
        waiting = sum(len(event) for event in response._buffer)
        most = max(most, waiting)
        assert waiting <= runtime.response_memory.used_bytes + 16_500 + size
    assert verdicts == [None]
    assert most <= Limits().response_buffer_bytes + size + 100


def test_engines_of_one_namespace_leave_memory_for_events_of_others() -> None:
    memory = ResponseMemory(4 * PART)
    hostile = [BufferedBytes(memory, "hostile") for _ in range(100)]
    kept = [buffered for buffered in hostile if not buffered.set_size(PART) or buffered.set_size(0)]
    assert len(kept) == 2
    assert not BufferedBytes(memory, "honest").set_size(PART)


def test_unfinished_prefill_responses_fill_no_memory_together() -> None:
    async def start(call: EngineCall) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (2 * PART) + b"x" * PART)
        await call.wait_closed()

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        pool = ConnectionPool(
            Limits(buffered_responses_bytes=4 * PART + 100_000), loop, EngineCredentials({}, loop.time)
        )
        async with scripted_engine(start) as engine:
            message = [b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"]
            instance = Instance("e", "a", "m", "main", engine.url)
            calls = [
                loop.create_task(call_engine(pool, engine.url, message, 60.0, instance=instance)) for _ in range(5)
            ]
            await wait_until(lambda: sum(call.done() for call in calls) >= 3)
            causes = [str(call.exception()) for call in calls if call.done()]
            assert pool.response_memory.used_bytes <= 2 * PART + 50_000
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert pool.response_memory.used_bytes == 0
            pool.close()
            return causes

    assert run_async(main()) == ["gateway-full"] * 3


async def test_engines_that_flood_hundreds_of_connections_are_read_in_turn() -> None:
    loop = asyncio.get_running_loop()
    pool = ConnectionPool(Limits(), loop, EngineCredentials({}, loop.time))
    read: list[str] = []

    class Flooding(EngineConnection):
        def resume_reading(self) -> None:
            read.append(self.address)

    for _ in range(3):
        pool.resume_in_turn(Flooding(pool, "http://flooding"))
    pool.resume_in_turn(Flooding(pool, "http://other"))
    counts: list[int] = []
    for _ in range(5):
        await asyncio.sleep(0)
        counts.append(len(read))
    assert read == ["http://flooding", "http://other", "http://flooding", "http://flooding"]
    assert all(after - before <= 1 for before, after in zip([0, *counts], counts, strict=False))
