"""One ZMQ socket on an event loop: read without blocking and without gathering what nobody asked for.

pyzmq's own asyncio sockets make a future for each message. Here the loop is told of the socket's descriptor, which reports *changes*
only: after each report, and after anything else was done to the socket, it has to be read until it is dry. Whoever reads says
when it has had enough and comes back by ``Turns``.
"""

import contextlib
import itertools
from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from fairlead.limits import Limits
from fairlead_kvstore.reader.fair_scheduler import FairScheduler, ReadSource
from fairlead_kvstore.reader.timers import ReaderLoop

Context = zmq.Context["zmq.Socket[bytes]"]
Socket = zmq.Socket[bytes]
_MAX_SOCKETS: Final = 65_536

MONITORED_EVENTS: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)
DISCONNECT_EVENTS: Final = MONITORED_EVENTS & ~(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_ACCEPTED)
"""After these there is no connection any more."""


class ZmqSockets:
    """A context of one's own, and sockets that bound what they take and notice a peer that fell silent. Close it last."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._context: Context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, min(_MAX_SOCKETS, self._context.get(zmq.SOCKET_LIMIT)))
        self._names = itertools.count()

    def open(self, kind: int, waiting: int) -> Socket:
        """A socket that holds at most ``waiting`` messages that were not read yet."""
        socket, limits = self._context.socket(kind), self._limits
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, limits.kv_events_bytes)
        socket.setsockopt(zmq.RCVHWM, waiting)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, round(limits.kv_connect_seconds * 1e3))
        socket.setsockopt(zmq.HANDSHAKE_IVL, round(limits.kv_connect_seconds * 1e3))
        socket.setsockopt(zmq.HEARTBEAT_IVL, round(limits.kv_heartbeat_seconds * 1e3))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(limits.kv_heartbeat_timeout_seconds * 1e3))
        socket.setsockopt(zmq.IPV6, 1)
        return socket

    def monitor(self, socket: Socket) -> "ConnectionMonitor":
        """Tells what becomes of the connections of ``socket``; before it connects or binds."""
        return ConnectionMonitor(self._context, socket, f"inproc://monitor-{next(self._names)}")

    def close(self) -> None:
        """Close what is still open and end the context."""
        self._context.destroy(linger=0)


def receive_message(socket: Socket, max_parts: int) -> list[bytes] | None:
    """The next message, None when there is none now. Of its parts no more than ``most`` are kept, and one that tells of more.

    Frames know by themselves whether more follows; to ask the socket each time takes half as long again. Raises ZMQError when the
    socket is closed.
    """
    receive = socket.recv
    try:
        frame = receive(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    parts = [frame.bytes]
    while frame.more:
        frame = receive(zmq.NOBLOCK, copy=False)
        if len(parts) <= max_parts:
            parts.append(frame.bytes)
    return parts


def message_size(parts: list[bytes]) -> int:
    """Bytes of all parts."""
    return sum(map(len, parts))


class ConnectionMonitor:
    """What ZMQ says of a socket's connections, as ``(event, descriptor)``."""

    def __init__(self, context: Context, socket: Socket, address: str) -> None:
        self._watched = socket
        socket.monitor(address, MONITORED_EVENTS)
        self._pair = context.socket(zmq.PAIR)
        self._pair.setsockopt(zmq.LINGER, 0)
        self._pair.connect(address)

    @property
    def fd(self) -> int:
        """For the event loop."""
        return self._pair.fileno()

    def events(self) -> list[tuple[int, int]]:
        """All that happened since it was asked last."""
        found: list[tuple[int, int]] = []
        while True:
            try:
                told = parse_monitor_message(self._pair.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return found
            found.append((int(told["event"]), int(told["value"])))

    def close(self) -> None:
        """Before the socket that it watches."""
        with contextlib.suppress(zmq.ZMQError):
            self._watched.disable_monitor()
        self._pair.close(linger=0)


class PolledSocket:
    """A socket that ``source`` reads in turns for as long as it is ``open``. ``attach`` connects or binds it; what that raises closes
    it. ``monitor`` tells of its connections, where somebody listens to that."""

    def __init__(
        self,
        source: ReadSource,
        socket: Socket,
        attach: Callable[[], object],
        *,
        turns: FairScheduler,
        loop: ReaderLoop,
        monitor: ConnectionMonitor | None = None,
    ) -> None:
        self.is_open = True
        self._source = source
        self._socket = socket
        self._monitor = monitor
        self._scheduler = turns
        self._loop = loop
        try:
            attach()
        except BaseException:
            self._release()
            raise
        self._descriptors = [socket.fileno()] if monitor is None else [socket.fileno(), monitor.fd]
        for one in self._descriptors:
            loop.add_reader(one, self.mark_ready)

    def mark_ready(self) -> None:
        """It may have something to read: the descriptors tell of changes only, so say so after anything was done to it."""
        self._scheduler.mark_ready(self._source)

    def close(self) -> None:
        """End it; nobody is told, and what still comes is not heard."""
        if not self.is_open:
            return
        self.is_open = False
        for one in self._descriptors:
            self._loop.remove_reader(one)
        self._scheduler.remove(self._source)
        self._release()

    def _release(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
        self._socket.close(linger=0)
