"""Clients that do not read: they are disconnected, and what waits for them is bounded."""

import asyncio
import contextlib
import heapq
import itertools
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead.runtime.process_tuning import KERNEL_UNSENT_BYTES, limit_kernel_unsent
from fairlead.tenants.model import Tenant
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.http.connection import ClientConnection, ResponseWriter
from fairlead_gateway.http.listener import HttpRequest, Listener
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.http.send_rate import MIN_READ_RATE, acknowledged_bytes, reset_transport
from fairlead_gateway.http.sockets import ListenAddress
from fairlead_gateway.http.timers import MAX_ENDS_PER_TURN
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.upstream.stream_comments import SseKeepAlive, StreamTimes
from fairlead_gateway.worker.server import PublicServer
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.running_gateway import fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, get_request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

BULK = b"GET /bulk HTTP/1.1\r\nhost: x\r\n\r\n"
PING = b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n"


class VirtualLoop:
    """Callbacks in the order of a manual clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._due: list[tuple[float, int, Callable[..., object], tuple[Any, ...], list[bool]]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.clock.now()

    def call_soon(self, run: Callable[..., object], *arguments: Any) -> "Handle":
        return self.call_at(self.time(), run, *arguments)

    def call_later(self, seconds: float, run: Callable[..., object], *arguments: Any) -> "Handle":
        return self.call_at(self.time() + seconds, run, *arguments)

    def call_at(self, due: float, run: Callable[..., object], *arguments: Any) -> "Handle":
        is_cancelled = [False]
        heapq.heappush(self._due, (due, next(self._numbers), run, arguments, is_cancelled))
        return Handle(is_cancelled)

    def run_for(self, seconds: float) -> None:
        """Moves the clock and calls what becomes due on the way."""
        end = self.time() + seconds
        while self._due and self._due[0][0] <= end:
            due, _, run, arguments, is_cancelled = heapq.heappop(self._due)
            self.clock.advance(max(0.0, due - self.time()))
            if not is_cancelled[0]:
                run(*arguments)
        self.clock.advance(end - self.time())


class Handle:
    """A call that can be cancelled."""

    def __init__(self, is_cancelled: list[bool]) -> None:
        self._is_cancelled = is_cancelled

    def cancel(self) -> None:
        self._is_cancelled[0] = True


class KernelSocket:
    """A socket that reports how much its client has received."""

    def __init__(self) -> None:
        self.acknowledged = 1

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return struct.pack("=120xQ", self.acknowledged)

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        pass


class Wire:
    """A transport whose client reads only what the test lets it read."""

    def __init__(self, loop: VirtualLoop, listener: Listener) -> None:
        self._loop = loop
        self.unsent = 0
        self.is_open = True
        self.is_lost = False
        self.kernel: KernelSocket | None = None
        self._high = 0
        self._is_paused = False
        self.connection = ClientConnection(listener)
        self.connection.connection_made(cast(asyncio.Transport, self))

    def get_extra_info(self, name: str) -> KernelSocket | None:
        return self.kernel if name == "socket" else None

    def set_write_buffer_limits(self, high: int) -> None:
        self._high = high

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: bytes) -> None:
        if self.is_lost:
            raise RuntimeError("the handler is closed")  # as uvloop does
        self.unsent += len(data)
        if self.unsent > self._high and not self._is_paused:
            self._is_paused = True
            self.connection.pause_writing()

    def read(self, size: int) -> None:
        """The client reads so many bytes."""
        self.unsent = max(0, self.unsent - size)
        if self._is_paused and self.unsent <= self._high // 4:
            self._is_paused = False
            self.connection.resume_writing()

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        if not self.unsent:
            self.abort()

    def abort(self) -> None:
        if self.is_open:
            self.is_open = False
            self.unsent = 0
            self._loop.call_soon(self._on_lost)

    def _on_lost(self) -> None:
        self.connection.connection_lost(None)
        self.is_lost = True


class Handler:
    """It answers with a few hundred or 100,000 bytes, or begins a response that does not end."""

    def __init__(self) -> None:
        self.open: list[ResponseWriter] = []
        self.callers: dict[str, Caller] = {}

    def admit_body(self, head: RequestHead, client_address: str | None) -> None:
        pass

    def handle(self, request: HttpRequest, response: ResponseWriter) -> None:
        request.caller = self.callers.get(request.head.path)
        if request.head.path == "/stream":
            response.start_stream(200, "")
            self.open.append(response)
        else:
            response.send(200, "", b"x" * (100_000 if request.head.path == "/bulk" else 300))

    def on_rejected(self, error: GatewayError, response: ResponseWriter) -> None:
        response.send(error.status, "", b"{}")


def listener_of(limits: Limits) -> tuple[Listener, VirtualLoop, Handler]:
    loop, handler = VirtualLoop(), Handler()
    as_loop = cast(asyncio.AbstractEventLoop, loop)
    listener = Listener(handler, clock=loop.clock, limits=limits, loop=as_loop, create_request_id=lambda: "r")
    return listener, loop, handler


def fill(wire: Wire, loop: VirtualLoop) -> None:
    """Pipelines requests until the gateway takes no more."""
    before = -1
    while wire.is_open and wire.unsent != before:
        before = wire.unsent
        wire.connection.data_received(BULK * 4)
        loop.run_for(0)


def test_5000_clients_that_never_read_are_closed_within_a_minute_with_bounded_bytes() -> None:
    limits = Limits()
    listener, loop, _ = listener_of(limits)
    wires = [Wire(loop, listener) for _ in range(5_000)]
    for wire in wires:
        fill(wire, loop)
    assert sum(wire.unsent for wire in wires) <= limits.unsent_bytes + 2 * limits.write_high_bytes
    loop.run_for(60)
    assert [wire for wire in wires if wire.is_open] == []
    assert listener.connections == set()


def test_a_client_that_reads_at_the_least_rate_is_not_disconnected() -> None:
    limits = Limits()
    listener, loop, _ = listener_of(limits)
    reads, crawls = Wire(loop, listener), Wire(loop, listener)
    for wire in (reads, crawls):
        fill(wire, loop)
    for _ in range(120):
        loop.run_for(1)
        reads.read(MIN_READ_RATE)
        crawls.read(MIN_READ_RATE // 2)
    assert (reads.is_open, crawls.is_open) == (True, False)


def test_nothing_is_written_to_lost_connections_whose_ends_wait_for_their_turn() -> None:
    listener, loop, handler = listener_of(Limits())
    wires = [Wire(loop, listener) for _ in range(4 * MAX_ENDS_PER_TURN)]
    for wire in wires:
        wire.connection.data_received(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
        loop.run_for(0)
    times = StreamTimes(cast(WorkerRuntime, SimpleNamespace(loop=loop, limits=Limits(), now=loop.clock.now)))
    met: list[ResponseWriter] = []
    for response in handler.open:
        SseKeepAlive(response, times, partial(met.append, response))
        response.started = False  # its head is due
    for wire in wires:
        wire.is_open = False
        wire._on_lost()
    waiting = [response for response in handler.open if not response.finished]
    assert len(waiting) == 3 * MAX_ENDS_PER_TURN
    for response in waiting:
        response.started = True
        response.write_chunks([b": keep-alive\n\n"])
    loop.run_for(600)
    assert all(response.finished for response in handler.open)
    assert met == []
    assert listener.connections == set()


def test_a_stream_whose_client_stops_reading_ends_and_frees_its_engine() -> None:
    listener, loop, handler = listener_of(Limits())
    wire = Wire(loop, listener)
    wire.connection.data_received(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
    (response,) = handler.open
    gone: list[bool] = []
    response.on_client_gone = lambda: gone.append(True)
    response.write_chunks([b"x" * 300_000])
    loop.run_for(60)
    assert (wire.is_open, gone) == (False, [True])


def test_a_lingering_connection_does_not_live_on_a_byte_per_half_minute() -> None:
    listener, loop, _ = listener_of(Limits())
    crawls, steady = Wire(loop, listener), Wire(loop, listener)
    for wire in (crawls, steady):
        for _ in range(100):
            wire.connection.data_received(PING)
        wire.connection.data_received(PING.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    for _ in range(6):
        loop.run_for(15)
        crawls.read(1)
        steady.read(100)
        if steady.unsent:
            steady.read(1_024 * 16)
    assert (crawls.is_open, steady.is_open) == (False, False)
    assert loop.time() <= 120


def test_a_half_closed_client_that_never_reads_is_disconnected() -> None:
    listener, loop, _ = listener_of(Limits())
    wire = Wire(loop, listener)
    for _ in range(100):
        wire.connection.data_received(PING)
    wire.connection.eof_received()
    assert wire.is_open
    loop.run_for(60)
    assert not wire.is_open


def test_short_memory_closes_the_connections_with_the_most_unsent_bytes_first() -> None:
    listener, loop, _ = listener_of(Limits(write_high_bytes=40_000))
    wires = [Wire(loop, listener) for _ in range(8)]
    for number, wire in enumerate(wires):
        for _ in range(10 * (number + 1)):
            wire.connection.data_received(PING)
    idle = Wire(loop, listener)
    loop.run_for(2)
    assert all(wire.is_open for wire in wires)
    listener.set_memory_pressure(True)
    loop.run_for(1)
    closed = [number for number, wire in enumerate(wires) if not wire.is_open]
    assert closed == [6, 7]
    loop.run_for(10)
    closed = [number for number, wire in enumerate(wires) if not wire.is_open]
    assert closed == [2, 3, 4, 5, 6, 7]  # little is gained from the others
    assert idle.is_open
    listener.set_memory_pressure(False)
    loop.run_for(2)
    assert [number for number, wire in enumerate(wires) if not wire.is_open] == closed


@pytest.mark.parametrize("half_close", [False, True])
async def test_a_real_client_that_never_reads_is_reset(half_close: bool) -> None:
    limits = Limits(body_idle_seconds=0.2, unsent_check_seconds=0.02, keepalive_idle_seconds=60)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        connection = await RawConnection.connect(running.url)
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        listener = running.gateway.listener
        filling = asyncio.create_task(connection.send(get_request("/v1/models", close=False) * 100_000))
        await wait_until(lambda: bool(listener.connections))
        if half_close:
            connection.writer.write_eof()
        await wait_until(lambda: not listener.connections)
        filling.cancel()
        connection.writer.transport.abort()


def test_progress_that_only_the_kernel_sees_counts_as_reading() -> None:
    """A slow client reads from full kernel buffers for long before this process may write again."""
    limits = Limits()
    listener, loop, _ = listener_of(limits)
    reads, stalls = Wire(loop, listener), Wire(loop, listener)
    reads.kernel, stalls.kernel = KernelSocket(), KernelSocket()
    for wire in (reads, stalls):
        fill(wire, loop)
    for _ in range(90):
        loop.run_for(1)
        reads.kernel.acknowledged += MIN_READ_RATE
    assert (reads.is_open, stalls.is_open) == (True, False)


def test_bytes_that_kernels_take_first_earn_a_client_that_never_reads_no_second_time() -> None:
    limits = Limits()
    listener, loop, _ = listener_of(limits)
    wire = Wire(loop, listener)
    wire.kernel = KernelSocket()
    fill(wire, loop)
    for _ in range(8):  # its kernel's buffer fills, and no program reads from it
        loop.run_for(1)
        wire.kernel.acknowledged += 100_000
    loop.run_for(limits.body_idle_seconds + 1)
    assert not wire.is_open


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports it")
async def test_the_kernel_reports_how_much_a_client_has_received() -> None:
    with socket.create_server(("127.0.0.1", 0)) as port, socket.create_connection(port.getsockname()) as client:
        accepted, _ = port.accept()
        accepted.setblocking(False)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, accepted)
        transport.write(b"x" * 1_000)
        assert len(client.recv(1_000, socket.MSG_WAITALL)) == 1_000
        await wait_until(lambda: acknowledged_bytes(transport) == 1_000)
        transport.write(b"x" * 10_000_000)
        waiting = transport.get_write_buffer_size()
        assert waiting > 0
        assert (acknowledged_bytes(transport) or 0) < 10_001_000 - waiting
        reset_transport(transport)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have other buffers")
def test_the_kernel_takes_few_bytes_for_a_client_that_never_reads() -> None:
    with ListenAddress("127.0.0.1", 0).bind() as port, socket.socket() as client:
        limit_kernel_unsent(port, 65_536)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.connect(port.getsockname())
        accepted, _ = port.accept()
        with accepted:
            accepted.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while sent < 16_000_000:
                    sent += accepted.send(bytes(65_536))
            assert sent <= 4 * 65_536


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have other buffers")
async def test_the_public_port_bounds_what_the_kernel_takes() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        public = ListenAddress("127.0.0.1", 0).bind(shared=True)
        server = PublicServer(running.gateway, public)
        await server.start()
        assert public.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == KERNEL_UNSENT_BYTES
        await server.drain()


class ClosedTransport:
    """A transport whose socket has been closed; each call fails with the error."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.is_aborted = False

    def get_extra_info(self, name: str) -> "ClosedTransport":
        """Returns the socket."""
        return self

    def getsockopt(self, *_: int) -> bytes:
        """Fails."""
        raise self.error

    def setsockopt(self, *_: object) -> None:
        """Fails."""
        raise self.error

    def abort(self) -> None:
        """Closes the transport."""
        self.is_aborted = True


@pytest.mark.parametrize("error", [OSError("bad descriptor"), ValueError("negative"), OverflowError("too large")])
def test_connection_that_has_just_closed_ends_no_check_of_the_others(error: Exception) -> None:
    transport = ClosedTransport(error)
    assert acknowledged_bytes(cast(asyncio.Transport, transport)) is None
    reset_transport(cast(asyncio.Transport, transport))
    assert transport.is_aborted


def test_callers_with_little_unsent_keep_their_connections_before_one_with_much() -> None:
    listener, loop, handler = listener_of(Limits(unsent_bytes=400_000))
    handler.callers = {"/bulk": Caller(Tenant("steady"), "prod"), "/ping": Caller(Tenant("greedy"), "prod")}
    greedy = [Wire(loop, listener) for _ in range(100)]
    for wire in greedy:
        for _ in range(7):  # some 3 kB each
            wire.connection.data_received(PING)
    steady = Wire(loop, listener)
    steady.connection.data_received(BULK)
    loop.run_for(1)
    assert steady.unsent > max(wire.unsent for wire in greedy)
    for wire in greedy:
        for _ in range(2):
            wire.connection.data_received(PING)
    loop.run_for(1)
    assert steady.is_open
    assert 0 < sum(not wire.is_open for wire in greedy) < len(greedy)
