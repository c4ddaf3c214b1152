"""Ends of responses that engines delay, leave out or put where none is allowed."""

import asyncio
import contextlib

import pytest

from fairlead.limits import Limits
from fairlead_testing.engines.scripted import EngineCall, scripted_engine, token, well_behaved
from fairlead_testing.gateway.recording_sink import RecordingSink
from fairlead_testing.gateway.running_gateway import GOOD, STREAM, fleet_of, gateway_before, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.http.scripted_servers import tcp_server
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets


def _with_text(text: str) -> dict[str, object]:
    return GOOD | {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    "framing", [b"content-length: 5\r\n\r\n12345", b"transfer-encoding: chunked\r\n\r\n2\r\n12\r\n0\r\n\r\n"]
)
async def test_body_of_an_interim_response_is_no_part_of_the_final_one(framing: bytes) -> None:
    async def script(call: EngineCall) -> None:
        body = b"{" + b" " * 3_000_000 + b"}"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        with contextlib.suppress(ConnectionError):
            await call.send(b"HTTP/1.1 199 Almost\r\n" + framing + head + body)

    async with gateway_before([script], Limits(response_buffer_bytes=65_536)) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(GOOD))
        assert (await connection.read_response()).status == 502
        assert await connection.reader.read() == b""  # nothing behind the announced length
        await connection.close()


async def test_interim_response_that_states_an_empty_body_is_skipped() -> None:
    async def script(call: EngineCall) -> None:
        await call.send(b"HTTP/1.1 100 Continue\r\ncontent-length: 0\r\n\r\n")
        await well_behaved(call)

    async with gateway_before([script]) as running:
        assert (await request(running.url, GOOD)).status == 200


async def _never_complete(call: EngineCall) -> None:
    """Answers with a whole stream, but sends comments instead of the last chunk."""
    await call.start_stream()
    await call.event(token("a", "stop"))
    await call.event("[DONE]")
    with contextlib.suppress(ConnectionError):
        while not call.reader.at_eof():
            await call.chunk(b":\n\n")
            await asyncio.sleep(0)


async def test_streams_that_engines_never_complete_keep_no_connection() -> None:
    async with gateway_of(_never_complete, limits=Limits(stream_end_seconds=0.05)) as (running, engine):
        for _ in range(3):
            answer = await request(running.url, STREAM)
            assert answer.complete
            assert answer.events[-1] == "[DONE]"
        assert engine.connections == 3
        await wait_until(lambda: engine.open == 0)


async def test_stream_whose_last_chunk_comes_late_leaves_its_connection_to_the_next() -> None:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(token("a", "stop"))
        await call.event("[DONE]")
        await may_complete.wait()
        await call.chunk(b"")
        completed.set()

    may_complete, completed = asyncio.Event(), asyncio.Event()
    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        await request(running.url, STREAM)
        may_complete.set()
        await completed.wait()
        pool = running.gateway.stages.pool
        await wait_until(lambda: bool(pool._idle.get(engine.url)))
        await request(running.url, STREAM)
        assert engine.connections == 1


@pytest.mark.parametrize("field", [b"connection: close\r\n", b""])
async def test_response_before_the_request_was_read_keeps_neither_body_nor_connection(field: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"object":"chat.completion","choices":[{"index":0}]}'
        writer.write(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (field, len(body), body))
        await may_read.wait()
        size = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                size += len(data)
        sizes.append(size)
        writer.close()

    may_read = asyncio.Event()
    sizes: list[int] = []
    async with tcp_server(serve, buffer_bytes=4_096) as server:
        port = server.sockets[0].getsockname()[1]
        async with running_gateway(fleet_of([f"http://127.0.0.1:{port}"])) as running:
            answer = await request(running.url, _with_text("x" * 14_000_000))
            may_read.set()
            assert answer.status == 200, answer.body
            await wait_until(lambda: bool(sizes))
            assert sizes[0] < 14_000_000


async def test_request_that_has_ended_closes_no_connection_of_a_later_one() -> None:
    """The task of a request may run after its connection has the next one."""
    async with scripted_engine(well_behaved) as engine, running_gateway(fleet_of([engine.url])) as running:
        pool = running.gateway.stages.pool
        connection = await pool.connect(engine.url)
        first, second = RecordingSink(), RecordingSink()
        message = [b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"]
        connection.send_request(message, first, 5.0)
        await first.end.wait()
        connection.send_request(message, second, 5.0)
        connection.abandon(first)
        connection.abandon(first, has_ended=True)
        await second.end.wait()
        connection.abort()
