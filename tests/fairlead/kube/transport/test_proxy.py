"""Requests and watches through the HTTP proxy that a kubeconfig names by `proxy-url`."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from fairlead.kube.transport.http_transport import HttpRequest, HttpTransport, NotSent
from fairlead.kube.transport.watch_stream import WatchTransport
from fairlead_testing.http.certificates import CertificateAuthority, has_openssl
from fairlead_testing.waiting import wait_until

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GRANTED = b"HTTP/1.1 200 Connection established\r\nVia: a test\r\n\r\n"
needs_openssl = pytest.mark.skipif(not has_openssl(), reason="certificates are made with openssl: it is not there")


class Proxy:
    """A proxy that answers CONNECT with `answer`, and then joins both sides if it is a 200.

    heads: of the requests for a tunnel.
    """

    def __init__(self, answer: bytes = GRANTED) -> None:
        self.answer, self.heads, self.port = answer, list[str](), 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(self.answer)
        if b" 200 " not in self.answer:
            writer.close()
            return
        host, _, port = self.heads[-1].split(" ")[1].rpartition(":")
        inner_reader, inner_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        for source, target in ((reader, inner_writer), (inner_reader, writer)):
            task = asyncio.create_task(self._copy(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                target.write(data)
        except OSError:
            pass
        target.close()

    def all_ended(self) -> bool:
        return not self._tasks


@asynccontextmanager
async def servers(answer: bytes, secure: ssl.SSLContext | None) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy, and the URL of a server that answers each request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    proxy = Proxy(answer)
    inner = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=secure)
    outer = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = outer.sockets[0].getsockname()[1]
    port = inner.sockets[0].getsockname()[1]
    try:
        yield proxy, f"{'https' if secure else 'http'}://127.0.0.1:{port}"
    finally:
        outer.close()
        inner.close()


async def send(transport: HttpTransport) -> bytes:
    return (await transport.send(HttpRequest("GET", "/x"), (), 30.0, 1_000, 1_000)).body


@needs_openssl
@pytest.mark.parametrize("login", ["", "me:a%3Ab@", "me@"])
@pytest.mark.parametrize("secure", [True, False])
async def test_requests_share_a_tunnel_to_the_server(login: str, secure: bool, tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    context = authority.client_context()
    async with servers(GRANTED, authority.issue("here").server_context() if secure else None) as (proxy, url):
        transport = HttpTransport(url, lambda: context if secure else True, None, 5.0)
        transport.proxy = f"http://{login}127.0.0.1:{proxy.port}"
        assert [await send(transport), await send(transport)] == [b"ok", b"ok"]
        assert transport.connection_count == 1
        await transport.close()
        await wait_until(proxy.all_ended)
    (head,) = proxy.heads
    assert head.startswith(f"CONNECT {url.partition('//')[2]} HTTP/1.1\r\n")
    words = {"": "", "me:a%3Ab@": "me:a:b", "me@": "me:"}[login]
    expected = f"Proxy-Authorization: Basic {base64.b64encode(words.encode()).decode()}\r\n"
    assert (expected in head) == bool(login)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407 Proxy Authentication Required"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "502 Bad Gateway"),
        (b"SSH-2.0-x\r\n\r\n", "SSH-2.0-x"),
        (b"", "0 bytes read"),
        (b"x" * 100_000, "Separator"),
    ],
)
async def test_tunnel_that_the_proxy_refuses_means_not_sent(answer: bytes, words: str) -> None:
    async with servers(answer, None) as (proxy, url):
        transport = HttpTransport(url, lambda: True, None, 5.0)
        transport.proxy = f"http://127.0.0.1:{proxy.port}"
        with pytest.raises(NotSent, match=f"through its proxy-url: .*{words}"):
            await send(transport)
        assert transport.connection_count == 0
        await transport.close()


class TrustingCredentials:
    """Credentials that trust one authority."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def tls_context(self) -> ssl.SSLContext:
        return self._context


@needs_openssl
async def test_watch_goes_through_the_proxy(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    credentials = cast("Any", TrustingCredentials(authority.client_context()))
    async with servers(GRANTED, authority.issue("here").server_context()) as (proxy, url):
        transport = WatchTransport(url, credentials, None, 5.0)
        transport.proxy = f"http://127.0.0.1:{proxy.port}"
        async with await transport.open("/watch", ()) as opened:
            assert await anext(opened.iter_bytes()) == b"ok"
        await transport.close()
        await wait_until(proxy.all_ended)
    assert len(proxy.heads) == 1
