"""A closing port resets no accepted connection; the kernel accepts none that it would reset."""

import asyncio
import errno
import logging
import os
import select
import socket
import sys

import pytest

from fairlead.runtime.clock import ManualClock
from fairlead_gateway.http.sockets import ListenAddress
from fairlead_gateway.proxy.gateway import Gateway
from fairlead_gateway.worker.server import IDLE_SECONDS, PublicServer
from fairlead_testing.engines.scripted import PausedStream, scripted_engine
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

HOSTS = ("127.0.0.1", "::1")
PATIENCE_SECONDS = 120.0
linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere new connections come in until the port closes"
)


class Knocking(PublicServer):
    """Clients knock between its last ``accept`` and the close of its port."""

    def __init__(self, gateway: Gateway, public: socket.socket, clients: int) -> None:
        super().__init__(gateway, public)
        self.address = public.getsockname()[:2]
        self.late = [socket.socket(public.family) for _ in range(clients)]

    def _accept_pending(self) -> None:
        super()._accept_pending()
        self.codes = [try_connect(client, self.address) for client in self.late]

    def outcomes(self) -> list[str]:
        return [outcome(*attempt) for attempt in zip(self.late, self.codes, strict=True)]


def try_connect(client: socket.socket, address: tuple[str, int]) -> int:
    """Begin to connect; the error that came at once, if one did."""
    client.setblocking(False)
    code = client.connect_ex(address)
    return 0 if code == errno.EINPROGRESS else code


def outcome(client: socket.socket, code: int) -> str:
    """Returns the end of a connection, also of one that was accepted first."""
    if not code:
        assert select.select([], [client], [], PATIENCE_SECONDS)[1]
        code = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if not code:
        try:
            client.recv(1)
        except BlockingIOError:
            return "open"
        except OSError as error:
            code = error.errno or 0
    return os.strerror(code)


def send_request(client: socket.socket) -> socket.socket:
    """Sends a good request, and returns the client."""
    client.sendall(post_request(GOOD))
    client.setblocking(False)
    return client


async def answered(client: socket.socket) -> None:
    """The request gets its answer, which says that it is the connection's last."""
    connection = await RawConnection.from_socket(client)
    answer = await connection.read_response()
    assert (answer.status, answer.fields["connection"]) == (200, "close")
    await connection.close()


@pytest.mark.parametrize("host", HOSTS)
async def test_connections_that_wait_when_the_port_closes_are_answered(host: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        public = ListenAddress(host, 0).bind(shared=True)
        server = PublicServer(running.gateway, public)
        await server.start()
        running.gateway.drain()
        knocked = [socket.create_connection(public.getsockname()[:2]) for _ in range(5)]  # no turn to accept them
        server._accept_pending()
        server._server.close()
        for client in knocked:
            await answered(send_request(client))
        running.gateway.loop_lag.stop()


@linux_only
@pytest.mark.parametrize("host", HOSTS)
async def test_a_connection_that_comes_after_the_last_accept_is_refused_and_not_reset(host: str) -> None:
    async with running_gateway(fleet_of([])) as running:
        server = Knocking(running.gateway, ListenAddress(host, 0).bind(shared=True), 3)
        await server.start()
        await server.drain()
        outcomes = server.outcomes()
        for client in server.late:
            client.close()
        assert outcomes == [os.strerror(errno.ECONNREFUSED)] * 3
        running.gateway.loop_lag.stop()


@linux_only
@pytest.mark.parametrize("host", HOSTS)
async def test_a_handshake_under_way_when_the_drain_begins_ends_well(host: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        public = ListenAddress(host, 0).bind(shared=True)
        address = public.getsockname()[:2]
        public.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)  # a handshake ends with the first data
        server = PublicServer(running.gateway, public)
        await server.start()
        half = [socket.create_connection(address) for _ in range(3)]
        drain = asyncio.create_task(server.drain())
        await asyncio.sleep(0)  # it has begun
        with socket.socket(public.family) as late:
            ending = outcome(late, try_connect(late, address))
        for client in half:  # before the drain has its next turn
            send_request(client)
        for client in half:
            await answered(client)
        await drain
        assert ending == os.strerror(errno.ECONNREFUSED)
        running.gateway.loop_lag.stop()


@linux_only
@pytest.mark.parametrize("host", HOSTS)
async def test_where_another_listens_on_the_port_it_gets_those_who_come_last(host: str) -> None:
    async with running_gateway(fleet_of([])) as running:
        public = ListenAddress(host, 0).bind(shared=True)
        with ListenAddress(host, public.getsockname()[1]).bind(shared=True) as successor:
            server = Knocking(running.gateway, public, 16)  # the kernel deals them out by their addresses
            await server.start()
            await server.drain()
            outcomes = server.outcomes()
            for client in server.late:
                client.close()
            assert outcomes == ["open"] * 16
            for _ in server.late:
                successor.accept()[0].close()
        running.gateway.loop_lag.stop()


class CountingClock(ManualClock):
    """Counts how often it is asked."""

    looks = 0

    def now(self) -> float:
        self.looks += 1
        return super().now()


class Plain(socket.socket):
    """On a system without the option."""

    def setsockopt(self, *args: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "not here")


async def test_where_the_system_cannot_turn_away_a_drain_is_as_it_was(caplog: pytest.LogCaptureFixture) -> None:

    with caplog.at_level(logging.DEBUG, "fairlead.gateway"):
        async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
            public = Plain(fileno=ListenAddress("127.0.0.1", 0).bind(shared=True).detach())
            address = public.getsockname()
            server = PublicServer(running.gateway, public)
            await server.start()
            drain = asyncio.create_task(server.drain())
            await asyncio.sleep(0)  # it has begun
            await answered(send_request(socket.create_connection(address)))
            await drain
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
            running.gateway.loop_lag.stop()
    assert [record.message for record in caplog.records if "come in until the port closes" in record.message] == [
        f"new connections come in until the port closes: [Errno {errno.ENOPROTOOPT}] not here"
    ]


async def test_request_over_an_idle_connection_at_the_end_of_a_drain_is_answered() -> None:
    gate = PausedStream()
    async with scripted_engine(gate.script) as engine, running_gateway(fleet_of([engine.url])) as running:
        public = ListenAddress("127.0.0.1", 0).bind(shared=True)
        server = PublicServer(running.gateway, public)
        clock = CountingClock()
        running.gateway.runtime.now = clock.now
        await server.start()
        idle = await RawConnection.from_socket(socket.create_connection(public.getsockname()))
        await wait_until(lambda: bool(running.gateway.listener.connections))
        drain = asyncio.create_task(server.drain())
        await wait_until(lambda: clock.looks > 5)  # it has found nothing in flight
        await idle.send(post_request({**GOOD, "stream": True}))
        await wait_until(lambda: running.gateway.inflight_count() > 0)
        clock.advance(3 * IDLE_SECONDS)
        seen = clock.looks
        await wait_until(lambda: clock.looks > seen + 3)  # it looks whether it is over, and waits on
        assert not drain.done()
        gate.go_on.set()
        answer = await idle.read_response()
        assert (answer.status, answer.fields["connection"]) == (200, "close")
        assert answer.body.endswith(b"data: [DONE]\n\n")
        await idle.close()
        await drain
        running.gateway.loop_lag.stop()
