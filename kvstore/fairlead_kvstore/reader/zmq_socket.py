"""One ZMQ socket on an event loop, read without blocking and without futures.

Why: pyzmq's own asyncio sockets create a future for each message. Here the loop watches the
socket's descriptor, which reports *changes* only. After each report, and after any other use, the
socket has to be read until it is empty. A source stops reading when its turn is over and continues
through ``FairScheduler``.
"""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from fairlead.limits import Limits
from fairlead_kvstore.reader.fair_scheduler import FairScheduler, ReadSource
from fairlead_kvstore.reader.timers import ReaderLoop
from fairlead_kvstore.reader.unread_bytes import UnreadWatch

Context = zmq.Context["zmq.Socket[bytes]"]
Socket = zmq.Socket[bytes]
_MAX_SOCKETS: Final = 65_536
_MAX_SHORT_PART_BYTES: Final = 255

MONITORED_EVENTS: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)
DISCONNECT_EVENTS: Final = MONITORED_EVENTS & ~(
    zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_CONNECTED | zmq.EVENT_ACCEPTED
)
"""The events after which there is no connection."""


class ZmqSockets:
    """A ZMQ context whose sockets have bounded queues and heartbeats. Close it last."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._context: Context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, min(_MAX_SOCKETS, self._context.get(zmq.SOCKET_LIMIT)))
        self._names = itertools.count()

    def open_subscriber(self) -> Socket:
        """Returns a new SUB socket of all topics. For each engine it queues at most
        ``kv_pending_bytes`` of unread batches.

        Why: ZMQ's threads read without the event loop, and their queues count messages. So the
        queue holds as many messages as fit if each has the largest size.
        """
        limits = self._limits
        socket = self.open(zmq.SUB, max(1, limits.kv_pending_bytes // limits.kv_events_bytes))
        socket.setsockopt(zmq.RCVBUF, limits.kv_receive_buffer_bytes)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        return socket

    def open(self, kind: int, waiting: int) -> Socket:
        """Returns a new socket of a ZMQ type (``kind``) that queues at most ``waiting`` unread
        messages.
        """
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
        """Returns a monitor of the connections of ``socket``; call it before the socket connects or
        binds.
        """
        return ConnectionMonitor(self._context, socket, f"inproc://monitor-{next(self._names)}")

    def close(self) -> None:
        """Closes open sockets and ends the context."""
        self._context.destroy(linger=0)


@dataclass(frozen=True, slots=True)
class SocketContext:
    """The sockets of one indexer, and the event loop, scheduler and limits by which they are
    read. ``unread`` watches their connections.
    """

    sockets: ZmqSockets
    scheduler: FairScheduler
    loop: ReaderLoop
    limits: Limits
    unread: UnreadWatch


def receive_message(socket: Socket, max_parts: int) -> tuple[list[bytes], int] | None:
    """Returns the parts of the next message, and its bytes on the connection. None when there is no
    message now. Parts after the first ``max_parts`` + 1 are dropped.

    Raises ZMQError when the socket is closed.

    Why: ``frame.more`` shows whether parts follow. To query the socket for it takes half as long
    again.
    """
    receive = socket.recv
    try:
        frame = receive(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    parts = [frame.bytes]
    size = wire_size(len(parts[0]))
    while frame.more:
        frame = receive(zmq.NOBLOCK, copy=False)
        size += wire_size(len(frame))
        if len(parts) <= max_parts:
            parts.append(frame.bytes)
    return parts, size


def wire_size(size: int) -> int:
    """Returns the bytes that a part takes on the connection, with its flags and length."""
    return size + (2 if size <= _MAX_SHORT_PART_BYTES else 9)


def message_size(parts: list[bytes]) -> int:
    """Returns the size of all parts in bytes."""
    return sum(map(len, parts))


class ConnectionMonitor:
    """A monitor of the connection events of a socket.

    on_connected: called with the descriptor of a connection that the socket has made, also while
    the socket is not read.
    """

    def __init__(self, context: Context, socket: Socket, address: str) -> None:
        self.on_connected: Callable[[int], None] = lambda descriptor: None
        self._pending: list[tuple[int, int]] = []
        self._watched = socket
        socket.monitor(address, MONITORED_EVENTS)
        self._pair = context.socket(zmq.PAIR)
        self._pair.setsockopt(zmq.LINGER, 0)
        self._pair.connect(address)

    @property
    def fd(self) -> int:
        """The file descriptor that the event loop watches."""
        return self._pair.fileno()

    def events(self) -> list[tuple[int, int]]:
        """Returns all events since the last call, as pairs of event and descriptor, without those
        of ``on_connected``.
        """
        self.receive()
        found, self._pending = self._pending, []
        return found

    def receive(self) -> None:
        """Receives events, and keeps them for ``events``."""
        while True:
            try:
                message = parse_monitor_message(self._pair.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            event, value = int(message["event"]), int(message["value"])
            if event == zmq.EVENT_CONNECTED:
                self.on_connected(value)
            else:
                self._pending.append((event, value))

    def close(self) -> None:
        """Ends the monitor; call it before the socket is closed."""
        with contextlib.suppress(zmq.ZMQError):
            self._watched.disable_monitor()
        self._pair.close(linger=0)


class PolledSocket:
    """A socket that ``source`` reads in turns while it is open.

    attach: connects or binds the socket; an exception closes it.
    monitor: the monitor of its connections, where the source uses one.
    """

    def __init__(
        self,
        source: ReadSource,
        socket: Socket,
        attach: Callable[[], object],
        context: SocketContext,
        monitor: ConnectionMonitor | None = None,
    ) -> None:
        self.is_open = True
        self._source = source
        self._socket = socket
        self._monitor = monitor
        self._scheduler = context.scheduler
        self._loop = context.loop
        try:
            attach()
        except BaseException:
            self._release()
            raise
        self._descriptors = [socket.fileno()]
        context.loop.add_reader(socket.fileno(), self.mark_ready)
        if monitor is not None:
            self._descriptors.append(monitor.fd)
            context.loop.add_reader(monitor.fd, self._on_monitor_ready)

    def mark_ready(self) -> None:
        """Schedules a read. Call it after any use of the socket, since descriptors report changes
        only.
        """
        if self.is_open:
            self._scheduler.mark_ready(self._source)

    def close(self) -> None:
        """Closes the socket without a callback; pending messages are dropped."""
        if not self.is_open:
            return
        self.is_open = False
        for descriptor in self._descriptors:
            self._loop.remove_reader(descriptor)
        self._scheduler.remove(self._source)
        self._release()

    def _on_monitor_ready(self) -> None:
        assert self._monitor is not None
        self._monitor.receive()
        self.mark_ready()

    def _release(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
        self._socket.close(linger=0)
