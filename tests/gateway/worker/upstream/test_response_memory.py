"""Responses that engines never complete, in large and tiny parts: memory and turns are bounded."""

import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable

from fairlead.engines.credentials import EngineCredentials
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_gateway.worker.runtime import WorkerRuntime
from fairlead_gateway.worker.upstream.connection import EngineConnection
from fairlead_gateway.worker.upstream.connection_pool import ConnectionPool
from fairlead_gateway.worker.upstream.response import EngineResponse
from fairlead_testing.engines.scripted import EngineCall, scripted_engine, token
from fairlead_testing.gateway.running_gateway import RunningGateway, fleet_of, run_async, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.waiting import wait_until

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = GOOD | {"stream": True}
PART = 100_000


def test_tiny_chunks_of_an_engine_take_no_more_memory_than_large_ones() -> None:
    async def main() -> int:
        runtime = WorkerRuntime(SystemClock(), Limits(), asyncio.get_running_loop())
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
        return used

    assert run_async(main()) < 4 * PART


async def _with_stalled_responses(
    start: Callable[[EngineCall], Awaitable[None]],
    body: dict[str, object],
    use: Callable[[RunningGateway, list[RawConnection], list[EngineCall]], Awaitable[None]],
) -> None:
    calls: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        await start(call)
        calls.append(call)
        await call.wait_closed()

    limits = Limits(buffered_responses_bytes=2 * PART + 50_000)
    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        memory = running.gateway.runtime.response_memory
        clients: list[RawConnection] = []
        for number in (1, 2):
            clients.append(await RawConnection.connect(running.url))
            await clients[-1].send(post_request(body))
            await wait_until(lambda number=number: memory.used_bytes >= number * PART)  # type: ignore[misc]
        clients.append(await RawConnection.connect(running.url))
        await clients[-1].send(post_request(body))
        await use(running, clients, calls)
        for client in clients:
            await client.close()
        await wait_until(lambda: memory.used_bytes == 0)


def test_plain_response_beyond_the_memory_of_all_is_passed_on_as_it_comes() -> None:
    text = json.dumps({"object": "chat.completion", "text": "x" * PART}).encode()

    async def start(call: EngineCall) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(text))
        await call.send(text[:-1])

    async def use(running: RunningGateway, clients: list[RawConnection], calls: list[EngineCall]) -> None:
        await wait_until(lambda: len(calls) == 3)
        await calls[2].send(text[-1:])
        response = await clients[2].read_response()
        assert (response.status, response.body) == (200, text)
        assert running.gateway.runtime.response_memory.used_bytes < 2 * PART + 50_000

    run_async(_with_stalled_responses(start, GOOD, use))


def test_streams_whose_events_never_end_fill_no_memory_together() -> None:
    async def start(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(token("a"))
        await call.chunk(b"data: " + b"x" * PART)

    async def use(running: RunningGateway, clients: list[RawConnection], calls: list[EngineCall]) -> None:
        response = await clients[2].read_response()
        assert response.status == 502 or b"stream_error_event" in response.body
        assert running.gateway.runtime.response_memory.used_bytes < 2 * PART + 50_000

    run_async(_with_stalled_responses(start, STREAM, use))


def test_engines_that_flood_hundreds_of_connections_are_read_in_turn() -> None:
    async def main() -> None:
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

    run_async(main())
