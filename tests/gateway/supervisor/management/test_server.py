"""The management port on the wire: its connections behave like those of the clients' port."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.process_tuning import KERNEL_UNSENT_BYTES
from fairlead_gateway.http.connection import ClientConnection, ResponseWriter
from fairlead_gateway.http.listener import HttpRequest, Listener
from fairlead_gateway.http.request_parser import parse_head
from fairlead_gateway.supervisor.management.access.access_guard import AccessGuard
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens
from fairlead_gateway.supervisor.management.server import ManagementServer, serve_request
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets


@asynccontextmanager
async def managed(view: Any, token: str | None = None) -> AsyncIterator[str]:
    private = socket.create_server(("127.0.0.1", 0))
    management = ManagementServer(view, private, limits=Limits(), tokens=ManageTokens(token))
    await management.start()
    try:
        yield f"http://127.0.0.1:{private.getsockname()[1]}"
    finally:
        await management.stop()


async def test_one_connection_asks_for_everything_in_turn(made_up: Any) -> None:
    made_up.serve(50)
    async with managed(made_up) as url:
        connection = await RawConnection.connect(url)
        for path, kind in {
            "/readyz": "application/json",
            "/metrics": "text/plain; version=0.0.4; charset=utf-8",
            "/": "text/html; charset=utf-8",
            "/api/stats?model=llama-70b": "application/json",
            "/api/decisions/a%20b": "application/json",
        }.items():
            await connection.send(get_request(path, close=False))
            reply = await connection.read_response()
            assert reply.fields["content-type"] == kind
            assert reply.fields["x-content-type-options"] == "nosniff"
            assert reply.status == (404 if "%20" in path else 200)
        assert "'a b'" in reply.json["error"]["message"]
        await connection.close()


async def test_kernel_takes_few_bytes_for_a_client_that_never_reads(made_up: Any) -> None:
    private = socket.create_server(("127.0.0.1", 0))
    management = ManagementServer(made_up, private, limits=Limits(), tokens=ManageTokens(None))
    await management.start()
    bound = private.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
    await management.stop()
    assert bound == KERNEL_UNSENT_BYTES


async def test_what_is_not_http_is_refused_and_so_is_a_host_given_twice(made_up: Any) -> None:
    async with managed(made_up) as url:
        for wrong in (b"GET / HTTP/1.1\nhost: x\n\n", b"GET / HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n"):
            reply = (await send(url, wrong))[0]
            assert (reply.status, reply.json["error"]["code"]) == (400, "malformed_http")


async def test_two_tokens_are_refused_also_if_they_are_equal(made_up: Any) -> None:
    async with managed(made_up, "right") as url:
        for tokens in (("right", "wrong"), ("wrong", "right"), ("right", "right")):
            more = "".join(f"authorization: Bearer {token}\r\n" for token in tokens)
            (answer,) = await send(url, get_request("/api/fleet", more=more).replace(b"host: x", b"host: localhost"))
            assert answer.status == 400


async def test_nobody_waits_for_a_body(made_up: Any) -> None:
    async with managed(made_up) as url:
        whole = (await send(url, post_request({"a": 1}, path="/api/stats")))[0]
        announced = (await send(url, b"POST /api/stats HTTP/1.1\r\nhost: x\r\ncontent-length: 999999\r\n\r\n"))[0]
        for reply in (whole, announced):
            assert (reply.status, reply.fields["allow"]) == (405, "GET")


@pytest.mark.parametrize(
    ("token", "more", "status"),
    [
        ("t", "", 401),
        ("t", "authorization: Bearer wrong\r\n", 401),
        ("t", "authorization: Bearer t\r\nhost: evil.example\r\n", 403),
        ("t", "authorization: Bearer t\r\norigin: https://evil.example\r\n", 403),
        (None, "host: evil.example\r\n", 403),
    ],
)
@pytest.mark.parametrize("framing", ["content-length: 900000", "transfer-encoding: chunked\r\nexpect: 100-continue"])
async def test_no_body_is_read_before_host_and_token_are_checked(
    token: str | None, more: str, status: int, framing: str, made_up: Any
) -> None:
    async with managed(made_up, token) as url:
        host = "" if "host:" in more else "host: 127.0.0.1\r\n"
        connection = await RawConnection.connect(url)
        await connection.send(f"POST /api/route HTTP/1.1\r\n{host}{more}{framing}\r\n\r\n".encode())
        reply = await connection.read_response()
        assert (reply.status, reply.fields["connection"]) == (status, "close")
        assert ("www-authenticate" in reply.fields) == (status == 401)
        await connection.close()


@pytest.mark.parametrize(("token", "status"), [(None, 413), ("t", 503)])
async def test_a_body_over_one_mebibyte_needs_the_token(token: str | None, status: int, made_up: Any) -> None:
    async def preview_route(path: str, body: bytes, *more: Any) -> list[Any]:
        return []

    made_up.preview_route = preview_route
    more = "authorization: Bearer t\r\n" if token else ""
    text = b" " * 1_100_000
    chunked = b"POST /api/route HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n"
    async with managed(made_up, token) as url:
        reply = (await send(url, post_request(text, path="/api/route", more=more)))[0]
        assert reply.status == status
        frames = b"".join(b"%x\r\n%b\r\n" % (len(text) // 10, text[: len(text) // 10]) for _ in range(10))
        reply = (await send(url, chunked + more.encode() + b"\r\n" + frames + b"0\r\n\r\n"))[0]
        assert reply.status == status


async def test_the_answer_to_head_has_no_body(made_up: Any) -> None:
    async with managed(made_up) as url:
        connection = await RawConnection.connect(url)
        for _ in range(2):
            await connection.send(get_request("/readyz", method="HEAD", close=False))
            assert (await connection.read_response(head_only=True)).status == 405
        await connection.close()


async def test_a_defect_is_answered_and_logged_without_its_text(made_up: Any, caplog: pytest.LogCaptureFixture) -> None:
    words = "a secret"

    async def status() -> None:
        raise RuntimeError(words)

    made_up.status = status
    async with managed(made_up) as url:
        reply = (await send(url, get_request("/readyz")))[0]
        assert reply.status == 500
        assert words not in reply.json["error"]["message"]
    assert "RuntimeError on the management port" in caplog.text
    assert words not in caplog.text


async def test_who_leaves_is_not_worked_for_any_longer(made_up: Any) -> None:
    ended = []
    asked = asyncio.Event()

    async def status() -> None:
        asked.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    made_up.status = status
    async with managed(made_up) as url:
        connection = await RawConnection.connect(url)
        await connection.send(get_request("/readyz"))
        await asked.wait()
        await connection.close()
        await wait_until(lambda: bool(ended))


async def test_the_end_waits_for_an_answer_under_way(made_up: Any) -> None:
    asked, may = asyncio.Event(), asyncio.Event()
    status = made_up.status

    async def slow() -> Any:
        asked.set()
        await may.wait()
        return await status()

    made_up.status = slow
    private = socket.create_server(("127.0.0.1", 0))
    management = ManagementServer(made_up, private, limits=Limits(), tokens=ManageTokens(None))
    await management.start()
    connection = await RawConnection.connect(f"http://127.0.0.1:{private.getsockname()[1]}")
    await connection.send(get_request("/readyz", close=False))
    await asked.wait()
    ending = asyncio.create_task(management.stop())
    await asyncio.sleep(0)
    may.set()
    reply = await connection.read_response()
    assert (reply.status, reply.fields["connection"]) == (200, "close")
    await connection.close()
    await ending


async def test_an_asker_without_an_address_is_not_taken_for_this_machine() -> None:
    """A connection that was reset before it was served has no address."""

    class Reset(asyncio.Transport):
        sent = b""

        def write(self, data: bytes | bytearray | memoryview) -> None:
            self.sent += bytes(data)

        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app was asked")

    loop, transport = asyncio.get_running_loop(), Reset()
    listener = Listener(cast(Any, None), clock=SystemClock(), limits=Limits(), loop=loop, create_request_id=lambda: "r")
    line = ClientConnection(listener)
    line.connection_made(transport)
    head = parse_head(b"GET /api/fleet HTTP/1.1\r\nhost: x", Limits())
    await serve_request(
        AccessGuard(never), HttpRequest(head, b"", "r", 0.0, 0.0), ResponseWriter(line, head, "r"), ("127.0.0.1", 1)
    )
    line.connection_lost(None)
    assert transport.sent.startswith(b"HTTP/1.1 403 ")
