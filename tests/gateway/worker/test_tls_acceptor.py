"""TLS handshakes in progress: counted and bounded, over real sockets."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.limits import Limits
from fairlead_gateway.http.sockets import ListenAddress
from fairlead_gateway.http.tls_certificate import TlsCertificate
from fairlead_gateway.worker.server import TlsAcceptor
from fairlead_testing.gateway.running_gateway import fleet_of, running_gateway
from fairlead_testing.http.certificates import CertificateAuthority, has_openssl
from fairlead_testing.http.raw_client import get_request
from fairlead_testing.waiting import wait_until

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(not has_openssl(), reason="certificates are made with the openssl command: it is not there"),
]


@asynccontextmanager
async def tls_port(folder: Path, limits: Limits) -> AsyncIterator[tuple[TlsAcceptor, int, ssl.SSLContext]]:
    """Runs the TLS port of a gateway without engines; yields it, its number, a client's context."""
    issued = CertificateAuthority(folder).issue("here")
    certificate = TlsCertificate(issued.certificate, issued.key)
    await certificate.load()
    assert certificate.context is not None
    public = ListenAddress("127.0.0.1", 0).bind()
    async with running_gateway(fleet_of([]), limits) as running:
        acceptor = TlsAcceptor(running.gateway.listener, public, certificate.context, limits)
        acceptor.start()
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        try:
            yield acceptor, public.getsockname()[1], trust
        finally:
            acceptor.close()


async def is_served(port: int, trust: ssl.SSLContext) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
    writer.write(get_request("/readyz"))
    answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


async def test_handshakes_that_clients_leave_are_bounded_and_keep_no_one_out(tmp_path: Path) -> None:
    limits = replace(Limits(), tls_handshakes=4, header_timeout_seconds=600.0)
    async with tls_port(tmp_path, limits) as (acceptor, port, trust):
        left = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        for reader, _ in left[:6]:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        await wait_until(lambda: len(acceptor._handshakes) == 4)
        assert await is_served(port, trust)
        assert len(acceptor._handshakes) <= 4
        for _, writer in left:
            writer.close()
        await wait_until(lambda: len(acceptor._handshakes) == 0)


async def test_handshakes_have_no_more_room_than_connections(tmp_path: Path) -> None:
    async with tls_port(tmp_path, replace(Limits(), connections=6, min_connections=2)) as (acceptor, port, trust):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
        await wait_until(lambda: len(acceptor._handshakes) == 0)
        left = [await asyncio.open_connection("127.0.0.1", port) for _ in range(9)]
        for waiting, _ in left[:4]:
            with contextlib.suppress(ConnectionResetError):
                assert await waiting.read() == b""
        await wait_until(lambda: len(acceptor._handshakes) == 5)
        writer.write(get_request("/readyz"))
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        for _, other in [*left, (reader, writer)]:
            other.close()
        await wait_until(lambda: len(acceptor._handshakes) == 0)


async def test_pending_connections_of_a_drain_are_accepted(tmp_path: Path) -> None:
    async with tls_port(tmp_path, Limits()) as (acceptor, port, trust):
        connecting = asyncio.create_task(is_served(port, trust))
        await wait_until(lambda: len(acceptor._handshakes) == 1 or connecting.done())
        handshakes = acceptor.accept_pending()
        acceptor.close()
        await asyncio.gather(*handshakes)
        assert await connecting
