"""Clients that leave, half-close or read slowly: engines stop at once, memory stays bounded."""

import asyncio
import socket
import struct
from collections.abc import Callable

import pytest

from fairlead.limits import Limits
from fairlead_testing.engines.scripted import (
    EngineCall,
    Script,
    ScriptedEngine,
    event,
    scripted_engine,
    silent,
    silent_after_token,
    token,
)
from fairlead_testing.gateway.running_gateway import GOOD, STREAM, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

PATIENCE_SECONDS = 120.0


def _kill(connection: RawConnection) -> None:
    """As the kernel closes the connection of a killed process that had not read everything: RST."""
    bound: socket.socket = connection.writer.get_extra_info("socket")
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.writer.transport.abort()


def _close(connection: RawConnection) -> None:
    connection.writer.close()


async def _tokens_forever(call: EngineCall) -> None:
    await call.start_stream()
    while True:
        await call.event(token("a"))
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("leave", [_close, _kill])
@pytest.mark.parametrize("engine_does", [silent, silent_after_token, _tokens_forever])
@pytest.mark.parametrize("body", [GOOD, STREAM], ids=["plain", "stream"])
async def test_a_client_that_leaves_frees_its_engine_at_once(
    leave: Callable[[RawConnection], None],
    engine_does: Script,
    body: dict[str, object],
) -> None:
    async with scripted_engine(engine_does) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(body, close=False))
        if body is STREAM and engine_does is not silent:
            await connection.reader.readuntil(b'"content":"a"')
        else:
            await wait_until(lambda: len(engine.calls) == 1)
        leave(connection)
        await _freed(running, engine)
        outcome = running.gateway.decisions.latest(1)[0]
        assert outcome.client_disconnected
        assert outcome.status == 499


async def _freed(running: RunningGateway, engine: ScriptedEngine) -> None:
    await wait_until(lambda: engine.open == 0)
    await wait_until(lambda: not running.gateway.inflight_count())
    assert {load.inflight for load in running.loads().values()} == {0}


async def test_a_client_that_closed_its_sending_side_first_and_everything_later_is_noticed() -> None:
    async with scripted_engine(silent) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(GOOD, close=False))
        connection.writer.write_eof()
        await wait_until(lambda: len(engine.calls) == 1)
        assert await connection.reader.readexactly(9) == b"HTTP/1.1 "
        await asyncio.sleep(0)
        assert engine.open == 1
        _kill(connection)
        await _freed(running, engine)


async def test_a_half_closed_client_gets_a_stream_to_its_end() -> None:
    go_on = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(token("a"))
        await go_on.wait()
        await call.event(token("b"))
        await call.finish()

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(STREAM, close=False))
        await connection.reader.readuntil(b'"content":"a"')
        connection.writer.write_eof()
        assert b":\n\n" in await connection.reader.readuntil(b":\n\n")
        go_on.set()
        rest = await connection.reader.read()
        assert b'"content":"b"' in rest
        assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        await connection.close()


PASSED_ON = "/v1/audio/speech"


async def _foreign(call: EngineCall, go_on: asyncio.Event) -> None:
    """Sends events of a format that the gateway does not parse, with a silence between two."""
    await call.start_stream()
    await call.chunk(b"event: a\ndata: {}\n\n")
    await go_on.wait()
    await call.chunk(b"event: b\ndata: {}\n\n")
    await call.chunk(b"")


@pytest.mark.parametrize("leave", [_close, _kill])
async def test_client_that_leaves_a_passthrough_stream_frees_its_silent_engine(
    leave: Callable[[RawConnection], None],
) -> None:
    async def script(call: EngineCall) -> None:
        silence = asyncio.create_task(_foreign(call, asyncio.Event()))
        await call.wait_closed()
        silence.cancel()

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request({"model": "tiny"}, path=PASSED_ON, close=False))
        await connection.reader.readuntil(b"data: {}\n\n\r\n")
        leave(connection)
        await _freed(running, engine)


async def test_a_half_closed_client_gets_a_stream_that_is_only_passed_on_to_its_end() -> None:
    go_on = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await _foreign(call, go_on)

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request({"model": "tiny"}, path=PASSED_ON, close=False))
        assert b"event: a" in await connection.reader.readuntil(b"data: {}\n\n\r\n")
        connection.writer.write_eof()
        assert await connection.reader.readexactly(1) == b"0"
        go_on.set()
        assert await connection.reader.read() == b"13\r\nevent: b\ndata: {}\n\n\r\n0\r\n\r\n"
        await connection.close()


async def test_a_storm_of_leaving_clients_leaves_nothing_running() -> None:
    async with scripted_engine(_tokens_forever) as engine, running_gateway(fleet_of([engine.url])) as running:
        clients = [await RawConnection.connect(running.url) for _ in range(100)]
        for connection in clients:
            await connection.send(post_request(STREAM))
        for connection in clients:
            await connection.reader.readuntil(b'"content":"a"')
        for number, connection in enumerate(clients):
            (_kill if number % 2 else _close)(connection)
        await _freed(running, engine)
        await wait_until(lambda: not running.gateway.listener.connections)


async def test_a_slow_reader_pauses_its_engine_and_loses_nothing() -> None:
    sent = 0
    total = 400
    piece = event(token("x" * 100_000))

    async def script(call: EngineCall) -> None:
        nonlocal sent
        await call.start_stream()
        for _ in range(total):
            await call.chunk(piece)
            sent += 1
        await call.finish()

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket transport has it
        await connection.send(post_request(STREAM))
        stood_still, last = 0, -1
        async with asyncio.timeout(PATIENCE_SECONDS):
            while stood_still < 50:
                await asyncio.sleep(0.005)
                stood_still = stood_still + 1 if sent == last and sent else 0
                last = sent
        assert sent < total  # the rest waits in the engine, not in the gateway
        other = await request(running.url, GOOD | {"stream": False, "messages": []})
        assert other.status == 400  # other clients do not wait
        connection.writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above
        answer = await connection.read_response()
        assert answer.complete
        assert sent == total
        assert len(answer.body) == total * len(piece) + len(event("[DONE]"))
        await connection.close()


async def test_a_reader_that_never_reads_is_given_up() -> None:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        while True:
            await call.event(token("x" * 100_000))

    limits = Limits(stream_idle_seconds=0.3)
    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        connection = await RawConnection.connect(running.url)
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket transport has it
        await connection.send(post_request(STREAM))
        await wait_until(lambda: len(engine.calls) == 1)
        await _freed(running, engine)
        assert running.gateway.decisions.latest(1)[0].client_disconnected
        _kill(connection)


async def test_a_client_that_pipelines_and_never_reads_is_held_back() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket transport has it
        wave = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * 2_000
        sending = asyncio.create_task(connection.send(wave * 40))
        await wait_until(lambda: bool(running.gateway.listener.connections))
        (line,) = running.gateway.listener.connections
        await wait_until(lambda: line._writing_paused)
        assert line._transport.get_write_buffer_size() < 8 * 1024 * 1024
        _kill(connection)
        await asyncio.gather(sending, return_exceptions=True)
