"""Memory is bounded and freed, and no other client waits."""

import asyncio
import gc
import socket
import struct
import weakref
from urllib.parse import urlsplit

import pytest

from fairlead.limits import Limits
from fairlead_gateway.http import connection as listen
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.engines.scripted import EngineCall, responds, scripted_engine, silent
from fairlead_testing.gateway.running_gateway import GOOD, RunningGateway, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

LARGE = GOOD | {"user": "x" * 300_000}


async def until(running: RunningGateway, connections: int) -> None:
    """Waits until so many clients are connected."""
    await wait_until(lambda: len(running.gateway.listener.connections) == connections)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as the kernel does for a killed process that had not read everything."""
    bound: socket.socket = writer.get_extra_info("socket")
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("data", [b"", b"GET / HT", post_request(LARGE)[:200_000], post_request(GOOD, close=False)])
async def test_a_closed_connection_and_its_body_are_gone_without_the_collector(data: bytes) -> None:

    gc.disable()
    try:
        async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
            connection = await RawConnection.connect(running.url)
            await connection.send(data)
            if data.endswith(b"}"):
                assert (await connection.read_response()).status == 200
            await until(running, 1)
            known = [weakref.ref(connection) for connection in running.gateway.listener.connections]
            await connection.close()
            await until(running, 0)
            for _ in range(5):
                await asyncio.sleep(0)
            assert [ref() for ref in known] == [None]
    finally:
        gc.enable()


async def test_large_bodies_have_a_bound_together_and_small_ones_go_on() -> None:
    limits = Limits(bodies_bytes=500_000)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        listener = running.gateway.listener
        first, second = await RawConnection.connect(running.url), await RawConnection.connect(running.url)
        await first.send(post_request(LARGE)[:-10])
        await wait_until(lambda: listener.buffered_bytes >= 290_000)
        await second.send(post_request(LARGE)[:-10])
        refused = await second.read_response()
        assert (refused.status, refused.error["code"], refused.fields["retry-after"]) == (503, "overloaded", "1")
        assert (await request(running.url, GOOD)).status == 200
        await first.send(post_request(LARGE)[-10:])
        assert (await first.read_response()).status == 200
        assert (await request(running.url, LARGE)).status == 200
        await first.close()
        await second.close()
        await until(running, 0)
        assert listener.buffered_bytes == 0


async def test_the_body_of_a_request_in_flight_counts_until_its_answer() -> None:
    go_on = asyncio.Event()

    async def slow(call: EngineCall) -> None:
        await go_on.wait()
        await call.respond(
            {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": "a"}, "text": "a"}]}
        )

    async with scripted_engine(slow) as engine, running_gateway(fleet_of([engine.url])) as running:
        asked = asyncio.create_task(request(running.url, LARGE))
        await wait_until(lambda: bool(engine.calls))
        assert running.gateway.listener.buffered_bytes > 300_000
        go_on.set()
        assert (await asked).status == 200
        assert running.gateway.listener.buffered_bytes == 0


async def test_small_bodies_and_heads_of_many_connections_have_a_bound_together() -> None:
    """Each was too small to be counted; together they were more than a gibibyte."""
    limits = Limits(bodies_bytes=300_000, unparsed_bytes=150_000)
    begun = post_request(GOOD | {"user": "x" * 50_000})[:-10]
    head = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 30_000
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        listener = running.gateway.listener
        for part, taken in ((begun, 6), (head, 4)):
            connections = []
            for number in range(taken + 1):
                connection = await RawConnection.connect(running.url)
                connections.append(connection)
                await connection.send(part)
                if number < taken:
                    counted = number * len(part) + len(part) // 2
                    await wait_until(lambda least=counted: listener.buffered_bytes + listener.unparsed_bytes >= least)  # type: ignore[misc]
            refused = await connections[-1].read_response()
            assert (refused.status, refused.error["code"], refused.fields["retry-after"]) == (
                503,
                "overloaded",
                "1",
            )
            assert (await request(running.url, GOOD)).status == 200
            for connection in connections:
                await connection.close()
            await until(running, 0)
            assert (listener.buffered_bytes, listener.unparsed_bytes) == (0, 0)


async def test_small_request_in_flight_is_counted_until_its_body_is_dropped() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(call: EngineCall) -> None:
        asked.set()
        await go_on.wait()
        await call.respond(
            {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": "a"}, "text": "a"}]}
        )

    async with scripted_engine(slow) as engine, running_gateway(fleet_of([engine.url])) as running:
        listener = running.gateway.listener
        connection = await RawConnection.connect(running.url)
        data = post_request(GOOD, close=False)
        await connection.send(data)
        await asked.wait()
        assert listener.buffered_bytes == len(data)
        await connection.send(b"GET /v1/mod")
        await wait_until(lambda: listener.unparsed_bytes > 0)
        assert listener.unparsed_bytes == 11
        go_on.set()
        assert (await connection.read_response()).status == 200
        assert listener.buffered_bytes == 0
        await connection.close()
        await until(running, 0)
        assert listener.unparsed_bytes == 0


async def test_a_body_of_empty_lines_in_chunks_does_not_hold_up_others() -> None:
    text = b'{"model":"tiny","messages":[{"role":"user","content":"x"}]' + b"\r\n" * 4_000_000 + b"}"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        heavy, light = await RawConnection.connect(running.url), await RawConnection.connect(running.url)
        sending = asyncio.create_task(heavy.send(head + b"%x\r\n" % len(text) + text + b"\r\n0\r\n\r\n"))
        answered = 0
        while not engine.calls:
            await light.send(get_request("/readyz", close=False))
            assert (await light.read_response()).status == 200
            answered += 1
        await sending
        assert (await heavy.read_response()).status == 200
        assert answered > 10
        assert engine.calls[0].body == text
        await heavy.close()
        await light.close()


@pytest.mark.parametrize(
    ("status", "expected"),
    [("400 Bad Request", (400, "engine_refused")), ("500 Internal Server Error", (502, "engine_failed"))],
)
async def test_an_error_without_an_end_is_given_up(status: str, expected: tuple[int, str]) -> None:
    async def endless(call: EngineCall) -> None:
        await call.send(f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n\r\n".encode())
        while not call.writer.is_closing():
            await call.send(b"x" * 65_536)

    async with scripted_engine(endless) as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, GOOD)
        assert (answer.status, answer.error["code"]) == expected
        await wait_until(lambda: engine.open == 0)


async def test_a_status_that_does_not_exist_is_no_answer() -> None:
    async with scripted_engine(responds({}, "099 Odd")) as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, GOOD)).status == 502


async def test_a_slow_reader_gets_all_of_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_LINGER_SECONDS", 0.01)
    text = {"object": "chat.completion", "choices": [{"text": "x" * 900_000}]}
    async with gateway_of(lambda call: call.respond(text)) as (running, *_):
        gateway, address = running.gateway, urlsplit(running.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=4_096)
        await until(running, 1)
        for connection in gateway.listener.connections:  # most of the answer shall wait here and not in the kernel
            bound: socket.socket = connection._transport.get_extra_info("socket")
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        writer.write(post_request(GOOD))
        head = await reader.readuntil(b"\r\n\r\n")
        await wait_until(lambda: not gateway.inflight_count())
        read = 0
        while part := await reader.read(16_384):
            read += len(part)
            if read < 100_000:
                assert gateway.listener.count_busy() == 1
            await asyncio.sleep(0.002)  # a slow reader is the subject
        assert f"content-length: {read}".encode() in head
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_leaves_while_it_is_not_read_from_frees_its_engine() -> None:
    async with scripted_engine(silent) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(GOOD, close=False) + b"GET /v1/models HTTP/1.1\r\n" * 20_000)
        await wait_until(lambda: bool(engine.calls))
        await connection.close()
        await wait_until(lambda: not engine.open)


async def test_client_that_pipelines_and_half_closes_is_watched_for_its_second_request() -> None:
    async def silent(call: EngineCall) -> None:
        if "user" not in call.json:
            await call.respond(
                {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": "a"}, "text": "a"}]}
            )
        else:
            await call.wait_closed()

    async with scripted_engine(silent) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(GOOD, close=False) + post_request(GOOD | {"user": "a"}, close=False))
        connection.writer.write_eof()
        await wait_until(lambda: len(engine.calls) >= 2)
        reset(connection.writer)
        await wait_until(lambda: not engine.open)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answered_request_leaves_nothing_for_the_collector(stream: bool) -> None:
    """The prompt would stay in memory until the next turn of the collector."""

    async def main() -> list[str]:
        async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
            body = GOOD | {"stream": stream}
            await request(running.url, body)
            gc.collect()
            gc.set_debug(gc.DEBUG_SAVEALL)
            for _ in range(20):
                assert (await request(running.url, body)).status == 200
            gc.collect()
            return [cls.__name__ for cls in map(type, gc.garbage) if cls.__module__.startswith("fairlead_gateway")]

    gc.disable()
    try:
        assert await main() == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def keys_of(*names: str) -> ApiKeys:
    return ApiKeys(b"pepper", {key_digest(name.encode(), b"pepper"): name for name in names})


def bearer(name: str) -> str:
    return f"authorization: Bearer {name}\r\n"


@pytest.mark.parametrize(("is_complete", "spare_bytes"), [(False, 100), (True, -100)])
async def test_bodies_of_one_caller_leave_memory_for_those_of_others(is_complete: bool, spare_bytes: int) -> None:
    """`is_complete`: its requests are answered slowly; otherwise their ends do not arrive."""
    body = GOOD | {"user": "x" * 90_000}
    data = post_request(body, more=bearer("greedy"))
    share = (2 * len(data) + spare_bytes) / 500_000
    limits = Limits(bodies_bytes=500_000, caller_bodies_share=share)
    go_on = asyncio.Event()

    async def slow(call: EngineCall) -> None:
        await go_on.wait()
        await call.respond(
            {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": "a"}, "text": "a"}]}
        )

    async with gateway_of(slow, limits=limits, api_keys=keys_of("greedy", "steady")) as (running, *_):
        listener = running.gateway.listener
        connections = []
        for number in range(1, 4):
            connection = await RawConnection.connect(running.url)
            connections.append(connection)
            await connection.send(data if is_complete else data[:-10])
            if number < 3:
                await wait_until(lambda counted=number * 90_000: listener.buffered_bytes > counted)  # type: ignore[misc]
        refused = await connections[-1].read_response()
        assert (refused.status, refused.error["code"], refused.fields["retry-after"]) == (503, "overloaded", "1")
        sending = [asyncio.create_task(request(running.url, body, more=bearer("steady"))) for _ in range(2)]
        await wait_until(lambda: listener.buffered_bytes > 4 * 90_000)
        go_on.set()
        assert [(await answer).status for answer in sending] == [200, 200]
        for connection in connections:
            await connection.close()
        await until(running, 0)
        assert (listener.buffered_bytes, listener._caller_bytes) == (0, {})
