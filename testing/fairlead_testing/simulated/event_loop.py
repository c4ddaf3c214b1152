"""An event loop in simulated time: its clock jumps to the next timer when no socket is ready.

Hours pass in milliseconds, and two runs of a test see the same order of events. TCP servers and
their clients are linked within the loop, and no port is used. All sockets must belong to the loop's
own process. Of threads, only those of `run_in_executor` may work for it: time stands still while
they do.

A connection between two sockets of one process, without the delays of a network.

The sockets are Unix sockets, since what one end sends is at the other end at once. They show what
TCP would show: a reset, the end that the peer has sent, and the acknowledged bytes.
"""

import asyncio
import errno
import itertools
import selectors
import socket
import struct
import weakref
from asyncio import selector_events
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fairlead.runtime.clock import Clock, SystemClock

Address = tuple[str, int]
"""Host and port."""
_BYTES_ACKED_OFFSET = 120
_ESTABLISHED, _CLOSE_WAIT = 1, 8
_SEND_BUFFER_BYTES = 16_384

MAX_TURNS = 20_000
WALL_OFFSET = 1_800_000_000.0
THREAD_SECONDS = 60.0
"""The longest real wait for a thread."""
_TURN_SECONDS = 1e-6
"""The time of one turn of the loop. So no timer is exactly on time, as no real one is."""
_FIRST_PORT = 10_001
_ANY_HOST = ("", "0.0.0.0", "::")
T = TypeVar("T")


class LinkSocket(socket.socket):
    """One end of a link.

    has_sent_eof: it sends no more.
    is_reset: it was closed with a reset.
    recorded: all bytes that it has sent.
    address: its own TCP address; None: it shows none.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
        self.setblocking(False)
        super().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self.has_sent_eof = self.is_reset = self._resets_on_close = False
        self.peer: LinkSocket | None = None
        self.recorded = bytearray()
        self.address: Address | None = None

    def getsockname(self) -> Address | str:
        return self.address or ""

    def getpeername(self) -> Address | str:
        return (self.peer and self.peer.address) or ""

    def setsockopt(self, *arguments: object) -> None:
        """Notes that the socket is to be closed with a reset."""
        if arguments[:2] == (socket.SOL_SOCKET, socket.SO_LINGER):
            self._resets_on_close = True
        else:
            super().setsockopt(*arguments)  # type: ignore[call-overload]

    def getsockopt(self, level: int, option: int, size: int = 0) -> int | bytes:  # type: ignore[override]
        """Returns what TCP would: the state, and the bytes that the peer's kernel has."""
        peer = self.peer
        if level == socket.SOL_SOCKET and option == socket.SO_ERROR:
            return int(peer is not None and peer.is_reset)
        if level == socket.IPPROTO_TCP:
            state = _CLOSE_WAIT if peer is not None and peer.has_sent_eof else _ESTABLISHED
            info = bytes([state]) + bytes(_BYTES_ACKED_OFFSET - 1) + struct.pack("=Q", len(self.recorded))
            return info[:size]
        return super().getsockopt(level, option, size) if size else super().getsockopt(level, option)

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        """Sends and counts bytes."""
        sent = super().send(data, flags)
        self.recorded += data[:sent]
        return sent

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receives bytes. Raises ConnectionResetError after a reset of the peer."""
        if self.peer is not None and self.peer.is_reset:
            raise ConnectionResetError
        return super().recv(size, flags)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        """Receives bytes like `recv`."""
        if self.peer is not None and self.peer.is_reset:
            raise ConnectionResetError
        return super().recv_into(buffer, size, flags)

    def shutdown(self, how: int) -> None:
        self.has_sent_eof = True
        super().shutdown(how)

    def close(self) -> None:
        """Closes the end, with a reset if that was set."""
        self.is_reset = self.is_reset or (self._resets_on_close and self.fileno() >= 0)
        self.has_sent_eof = True
        super().close()

    def reset(self) -> None:
        self._resets_on_close = True
        self.close()


class ListeningSocket(socket.socket):
    """A listening socket of the simulated network: it has an address, and the loop connects.

    bound: a TCP socket with that address, which is closed with it.
    """

    def __init__(self, address: Address, bound: socket.socket | None = None) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self.address = address
        self._bound = bound

    def getsockname(self) -> Address:
        return self.address

    def listen(self, backlog: int = 0) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Closes the socket and `bound`."""
        super().close()
        if self._bound is not None:
            self._bound.close()


def linked_sockets() -> tuple[LinkSocket, LinkSocket]:
    """Returns the two ends of a new connection."""
    first, second = (LinkSocket(end.detach()) for end in socket.socketpair())
    first.peer, second.peer = second, first
    return first, second


class _InstantSelector(selectors.DefaultSelector):
    """A selector that waits for nothing but threads.

    Raises AssertionError if the loop does not rest for many turns, or if it would rest for ever.

    now: the simulated time.
    threads: how many calls in threads have not returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.turns = 0
        self.threads = 0
        self.describe: Callable[[], str] = str
        self.on_advance: Callable[[], None] = lambda: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Returns the sockets that are ready; if there are none, advances the clock."""
        ready = super().select(0)
        self.turns = 0 if self.threads else self.turns + 1
        self.now += _TURN_SECONDS
        if self.turns > MAX_TURNS:
            raise AssertionError(f"the event loop is busy without end: {self.describe()}")
        if not ready and timeout != 0 and self.threads:
            ready = super().select(THREAD_SECONDS)
            if not ready:
                raise AssertionError(f"a thread did not return: {self.describe()}")
        elif not ready and timeout != 0:
            if timeout is None:
                raise AssertionError(f"the event loop waits for nothing: {self.describe()}")
            self.on_advance()
            self.turns = 0
            self.now += timeout
        return ready


class StrictTransport(selector_events._SelectorSocketTransport):  # type: ignore[misc, name-defined]
    """A transport that, like uvloop's, raises for uses after it has been closed."""

    is_lost = False

    def _call_connection_lost(self, error: Exception | None) -> None:
        try:
            super()._call_connection_lost(error)
        finally:
            self.is_lost = True

    def _check(self) -> None:
        if self.is_lost:
            raise RuntimeError("the transport is closed")

    def write(self, data: bytes) -> None:
        """Sends bytes."""
        self._check()
        super().write(data)

    def write_eof(self) -> None:
        self._check()
        super().write_eof()

    def pause_reading(self) -> None:
        self._check()
        super().pause_reading()

    def resume_reading(self) -> None:
        self._check()
        super().resume_reading()


class SimulatedLoop(asyncio.SelectorEventLoop):
    """The event loop of a test, and a clock that shows its time. A turn takes a microsecond.

    listeners: by host and port, called with the listener's end of each new connection. It may wait,
        and raises OSError to refuse. TCP servers of the loop enter themselves.
    transports: all that were made.
    errors: what was reported to the loop's exception handler.
    """

    def __init__(self) -> None:
        self.simulated = _InstantSelector()
        super().__init__(self.simulated)
        self.listeners: dict[Address, Callable[[LinkSocket], Awaitable[None]]] = {}
        self.transports: list[StrictTransport] = []
        self.errors: list[str] = []
        self._ports = itertools.count(_FIRST_PORT)
        self._connected: weakref.WeakKeyDictionary[socket.socket, LinkSocket] = weakref.WeakKeyDictionary()
        self.simulated.describe = self._describe_tasks
        self.set_exception_handler(self._on_error)

    def time(self) -> float:
        """Returns the simulated monotonic seconds."""
        return self.simulated.now

    def now(self) -> float:
        return self.simulated.now

    def wall(self) -> float:
        """Returns the simulated Unix seconds."""
        return self.simulated.now + WALL_OFFSET

    def live_timers(self) -> list[str]:
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return [repr(timer) for timer in timers if not timer.cancelled()]

    # Connections.

    async def create_server(
        self,
        protocol_factory: Any,
        host: str | Sequence[str] | None = None,
        port: int | None = None,
        *,
        sock: socket.socket | None = None,
        **options: Any,
    ) -> asyncio.Server:
        """Listens on an address of the simulated network. Port 0 is a free port.

        sock: a bound TCP socket, of which the address is used.
        """
        if sock is None:
            hosts = [host or ""] if host is None or isinstance(host, str) else list(host)
            first = port or next(self._ports)
            addresses = [(_canonical(name), first) for name in hosts]
        elif sock.family in (socket.AF_INET, socket.AF_INET6):
            addresses = [sock.getsockname()[:2]]
        else:
            return await super().create_server(protocol_factory, sock=sock, **options)
        for address in addresses:
            if address in self.listeners:
                raise OSError(errno.EADDRINUSE, f"address already in use: {address}")
        server = asyncio.Server(
            self,
            [ListeningSocket(address, sock) for address in addresses],
            protocol_factory,
            options.get("ssl"),
            options.get("backlog", 100),
            options.get("ssl_handshake_timeout"),
            options.get("ssl_shutdown_timeout"),
        )
        if options.get("start_serving", True):
            await server.start_serving()
        return server

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        """Connects to one of `listeners`, or uses a connected socket."""
        connected = options.pop("sock", None)
        near = self._connected.pop(connected, None) if connected is not None else await self._connect((host, port))
        if near is None:
            near = connected
        elif connected is not None:
            connected.close()
        if options.get("ssl") and options.get("server_hostname") is None:
            options["server_hostname"] = host
        for name in ("family", "proto", "flags", "local_addr", "happy_eyeballs_delay", "interleave"):
            options.pop(name, None)
        return await super().create_connection(protocol_factory, sock=near, **options)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connects a TCP socket, for `create_connection`."""
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            self._connected[sock] = await self._connect(address[:2])
        else:
            await super().sock_connect(sock, address)

    async def _connect(self, address: Address) -> LinkSocket:
        host, port = _canonical(address[0]), address[1]
        found = (self.listeners.get((name, port)) for name in (host, *_ANY_HOST))
        listener = next((listener for listener in found if listener is not None), None)
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nothing listens on {address}")
        near, far = linked_sockets()
        near.address, far.address = (host, next(self._ports)), (host, port)
        try:
            await listener(far)
        except BaseException:
            near.close()
            far.close()
            raise
        return near

    def _start_serving(
        self, protocol_factory: Any, sock: Any, sslcontext: Any = None, server: Any = None, *rest: Any
    ) -> None:
        """Is called by a server for each of its sockets."""
        if not isinstance(sock, ListeningSocket):
            super()._start_serving(protocol_factory, sock, sslcontext, server, *rest)  # type: ignore[misc]
            return

        async def accept(far: LinkSocket) -> None:
            extra = {"peername": far.getpeername()}
            accepting: Coroutine[Any, Any, None] = self._accept_connection2(  # type: ignore[attr-defined]
                protocol_factory, far, extra, sslcontext, server, *rest[1:]
            )
            self.create_task(accepting)

        self.listeners[sock.address] = accept

    def _stop_serving(self, sock: Any) -> None:
        if isinstance(sock, ListeningSocket):
            self.listeners.pop(sock.address, None)
            sock.close()
        else:
            super()._stop_serving(sock)  # type: ignore[misc]

    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, server: Any = None
    ) -> StrictTransport:
        transport = StrictTransport(self, sock, protocol, waiter, extra, server)
        self.transports.append(transport)
        return transport

    # Threads.

    def run_in_executor(self, executor: Any, function: Any, *arguments: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        """Runs a function in a thread; time stands still until it returns."""
        future = super().run_in_executor(executor, function, *arguments)
        self.simulated.threads += 1
        future.add_done_callback(self._on_thread_returned)
        return future

    def _on_thread_returned(self, _: "asyncio.Future[Any]") -> None:
        self.simulated.threads -= 1

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Waits for the threads."""
        executor = self._default_executor  # type: ignore[attr-defined]
        if executor is not None:
            executor.shutdown(wait=True)

    # Failures.

    def _describe_tasks(self) -> str:
        return "\n".join(map(repr, asyncio.all_tasks(self))) or "no task"

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")


def running_clock() -> Clock:
    loop = asyncio.get_running_loop()
    return loop if isinstance(loop, SimulatedLoop) else SystemClock()


def run_simulated(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in simulated time.

    Raises AssertionError for errors that reached the loop's exception handler.
    """
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, SimulatedLoop)
        result = runner.run(main)
    assert not loop.errors, loop.errors
    return result


def _canonical(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host
