"""The HTTP transport over real sockets: kept connections, and responses of every form, byte for
byte.
"""

import asyncio
from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager

import pytest

from fairlead.errors import BadInput
from fairlead.kube.transport.http_transport import HttpRequest, HttpResponse, HttpTransport, NotSent
from fairlead_testing.engines.scripted import EngineCall, HangUp, ScriptedEngine, scripted_engine
from fairlead_testing.processes import unused_port
from fairlead_testing.waiting import wait_until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET, POST = HttpRequest("GET", "/x"), HttpRequest("POST", "/x", body=b"{}", repeatable=False)


@asynccontextmanager
async def transport_to(
    *answers: bytes | None, closing: Container[int] = (), path: str = ""
) -> AsyncIterator[tuple[HttpTransport, ScriptedEngine]]:
    """Runs a transport to a server with one response per request, in order, over all connections.

    None ends the connection without a response. `closing` are the numbers of the responses after
    which the connection closes without notice.
    """
    left = iter(answers)

    async def script(call: EngineCall) -> None:
        answer = next(left)
        if answer is not None:
            await call.send(answer)
        if answer is None or len(server.calls) in closing:
            raise HangUp

    async with scripted_engine(script) as server:
        wire = HttpTransport(f"{server.url}{path}", lambda: True, None, 5.0)
        try:
            yield wire, server
        finally:
            await wire.close()


async def send(wire: HttpTransport, ask: HttpRequest = GET, most: int = 1_000) -> HttpResponse:
    return await wire.send(ask, (("User-Agent", "a test"),), 30.0, most, 5)


async def test_sequential_requests_share_a_connection() -> None:
    async with transport_to(OK, OK, path="/base/") as (wire, server):
        first, second = await send(wire), await send(wire, POST)
        assert (
            (first.status, first.body, first.truncated)
            == (second.status, second.body, second.truncated)
            == (200, b"ok", False)
        )
        assert server.connections == 1
        assert server.calls[0].head.startswith(b"GET /base/x HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"\r\nUser-Agent: a test\r\n" in server.calls[0].head
        assert server.calls[1].head.endswith(b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n")
        assert server.calls[1].body == b"{}"


async def test_parallel_requests_have_own_connections() -> None:
    async with transport_to(*[OK] * 5) as (wire, server):
        replies = await asyncio.gather(*(send(wire) for _ in range(5)))
        assert [reply.body for reply in replies] == [b"ok"] * 5
        assert 1 < server.connections <= 5


async def test_closed_idle_connection_is_replaced_if_the_request_is_repeatable() -> None:
    async with transport_to(OK, None, OK, None, OK) as (wire, server):
        await send(wire)
        assert (await send(wire)).body == b"ok"  # the second request found an end in place of an answer
        assert (len(server.calls), server.connections) == (3, 2)
        with pytest.raises(ConnectionError):
            await send(wire, POST)
        assert (len(server.calls), server.connections) == (4, 2)


async def test_closed_connection_is_not_used() -> None:
    async with transport_to(OK, OK, OK, closing=range(1, 9)) as (wire, server):
        for _ in range(3):
            assert (await send(wire, POST)).body == b"ok"
            await wait_until(lambda: not wire.connection_count)
        assert len(server.calls) == server.connections == 3


async def test_new_connection_without_response_is_not_retried() -> None:
    async with transport_to(None, OK) as (wire, server):
        with pytest.raises(ConnectionError):
            await send(wire)
        assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
    ],
)
async def test_responses_of_every_form_are_read(answer: bytes, kept: bool) -> None:
    async with transport_to(answer, OK) as (wire, server):
        assert (await send(wire)).body == b"ok"
        assert (await send(wire)).body == b"ok"
        assert server.connections == (1 if kept else 2)


async def test_response_without_length_ends_with_the_connection() -> None:
    async with transport_to(b"HTTP/1.1 200 OK\r\n\r\nall of it", OK, closing=range(1, 9)) as (wire, _):
        assert (await send(wire)).body == b"all of it"


async def test_partial_response_is_an_error() -> None:
    async with transport_to(OK, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", OK, closing={2}) as (wire, server):
        await send(wire)
        with pytest.raises(ConnectionError):
            await send(wire)
        assert len(server.calls) == 2  # also on a kept connection: its first byte had come


async def test_long_response_is_truncated_and_its_connection_closed() -> None:
    refusal = b"HTTP/1.1 429 Later\r\nRetry-After: 3\r\nContent-Length: 9\r\n\r\n123456789"
    async with transport_to(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789", refusal, OK) as (wire, server):
        long = await send(wire, most=4)
        assert (long.body, long.truncated) == (b"1234", True)
        refused = await send(wire)
        assert (refused.status, refused.body, refused.truncated, refused.header("retry-after")) == (
            429,
            b"12345",
            True,
            "3",
        )
        assert (await send(wire)).body == b"ok"
        assert server.connections == 3


@pytest.mark.parametrize("answer", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000])
async def test_invalid_response_breaks_the_connection(answer: bytes) -> None:
    async with transport_to(answer, OK) as (wire, _):
        with pytest.raises(ConnectionError, match="answer"):
            await send(wire)


async def test_large_request_arrives_completely() -> None:
    async with transport_to(OK) as (wire, server):
        body = bytes(range(256)) * 4_096
        assert (await send(wire, HttpRequest("PUT", "/x", body=body))).body == b"ok"
        assert server.calls[0].body == body


async def test_abandoned_request_leaves_no_response_for_the_next() -> None:
    async with transport_to(b"", b"", OK) as (wire, server):
        with pytest.raises(TimeoutError):
            await wire.send(GET, (), 0.02, 1_000, 5)
        waiting = asyncio.ensure_future(send(wire))
        await wait_until(lambda: len(server.calls) == 2)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert (await send(wire)).body == b"ok"
        assert server.connections == 3


async def test_connection_opened_during_close_is_closed() -> None:
    async with transport_to(OK) as (wire, server):
        waiting = asyncio.create_task(send(wire))
        await asyncio.sleep(0)  # it has begun to connect
        await wire.close()
        with pytest.raises(NotSent, match="is closed"):
            await waiting
        await wait_until(lambda: wire.connection_count == 0 == server.open)


async def test_refused_connection_means_not_sent() -> None:
    with pytest.raises(NotSent, match="cannot connect"):
        await send(HttpTransport(f"http://127.0.0.1:{unused_port()}", lambda: True, None, 5.0))


async def test_request_smuggling_is_refused() -> None:
    async with transport_to(OK) as (wire, server):
        with pytest.raises(BadInput, match="target"):
            await send(wire, HttpRequest("GET", "/x HTTP/1.1\r\nHost: y"))
        with pytest.raises(BadInput, match="control character") as raised:
            await wire.send(GET, (("Authorization", "Bearer t\r\nX: y"),), 30.0, 10, 10)
        assert "Bearer" not in str(raised.value)
        assert not server.calls
