"""A connection to an engine's socket of ZMQ: how it is made, and how the event loop reads it.

Received bytes become messages when the scheduler gives the owner a turn. Event connections with
enough unread bytes are not read any further; the kernel then holds the engine back. The engine
queues batches, and drops them when its queue is full; the next batch then shows a gap. Replays are
read as fast as they arrive, up to a bound.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead_kvstore.errors import ProtocolError
from fairlead_kvstore.events.zmtp import ZmtpStream
from fairlead_kvstore.reader.fair_scheduler import MESSAGE_OVERHEAD_BYTES
from fairlead_kvstore.reader.reader_context import ReaderContext

KV_FRAMES: Final = 8
"""Limit: parts of one message of KV events; valid ones have three or five."""
KV_CONNECT_SECONDS: Final = 5.0
"""Limit: from a connection to an engine's events until the handshake is complete."""
KV_HEARTBEAT_SECONDS: Final = 5.0
"""Limit: interval of probes (TCP keepalive) on a silent connection to an engine's events."""
KV_HEARTBEAT_TIMEOUT_SECONDS: Final = 15.0
"""Limit: a connection whose probes were not answered for this long is broken."""

_READ_BYTES: Final = 32_768
"""The bytes of one read of events, which pauses at as many unread bytes."""
_EAGER_READ_BYTES: Final = 262_144
"""The bytes of one read of a replay."""
_EAGER_READS: Final = 16
"""The reads of a replay before other work."""
_MAX_HANDSHAKE_BYTES: Final = 1_024
"""A greeting and one command have 90 to 400 bytes."""
_ENVELOPE_BYTES: Final = 4_096
"""The topic, the number and the frames around a batch."""
_MAX_PORT: Final = 65_535
_MAX_SOCKET_PATH_BYTES: Final = 107
"""The path of a unix socket on Linux, without its last byte."""

SocketAddress = tuple[str, int] | str
"""Host and port, or the path of a unix socket."""


def socket_address(endpoint: str) -> SocketAddress:
    """Returns the address of a ZMQ endpoint: ``tcp://[::1]:5557`` or ``ipc:///run/events.sock``.
    Raises BadInput.
    """
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if path[:1] != "/" or not path.isprintable() or len(path.encode()) > _MAX_SOCKET_PATH_BYTES:
            raise BadInput(
                f"{endpoint} is no endpoint of KV events",
                field="kvEvents",
                hint=f"write ipc:// and an absolute path of at most {_MAX_SOCKET_PATH_BYTES} bytes",
            )
        return path
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    is_port = port.isascii() and port.isdigit() and int(port[:6]) <= _MAX_PORT
    if not endpoint.startswith("tcp://") or not host or not is_port:
        hint = "write tcp://HOST:PORT or ipc:///PATH"
        raise BadInput(f"{endpoint} is no endpoint of KV events", field="kvEvents", hint=hint)
    return host.removeprefix("[").removesuffix("]"), int(port)


def new_stream(kind: str, limits: Limits) -> ZmtpStream:
    return ZmtpStream(kind, max_bytes=limits.kv_events_bytes + _ENVELOPE_BYTES, max_parts=KV_FRAMES)


async def open_connection(address: SocketAddress, kind: str, limits: Limits) -> tuple[socket.socket, ZmtpStream]:
    """Connects and shakes hands within ``kv_connect_seconds``. ``kind``: ``SUB`` or ``DEALER``.

    Raises OSError (TimeoutError among them) and ProtocolError.
    """
    error: OSError | None = None
    async with asyncio.timeout(KV_CONNECT_SECONDS):
        for family, resolved in await _resolve(address):
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.setblocking(False)
            try:
                if kind == "SUB":  # before it connects, since that sets the window
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limits.kv_receive_buffer_bytes)
                await asyncio.get_running_loop().sock_connect(connection, resolved)
                return connection, await _shake_hands(connection, kind, limits)
            except OSError as refused:
                error = refused
                connection.close()
            except BaseException:
                connection.close()
                raise
    raise error or OSError(f"{address[0]} has no address")


async def _shake_hands(connection: socket.socket, kind: str, limits: Limits) -> ZmtpStream:
    """Writes and reads until the handshake is over. Raises OSError and ProtocolError."""
    if connection.family != socket.AF_UNIX:
        _set_keepalive(connection)
    stream = new_stream(kind, limits)
    loop = asyncio.get_running_loop()
    left = _MAX_HANDSHAKE_BYTES
    while not stream.is_up:
        await loop.sock_sendall(connection, bytes(stream.outgoing))
        stream.outgoing.clear()
        if not left:
            raise ProtocolError(f"the peer sent {_MAX_HANDSHAKE_BYTES} bytes within the handshake")
        await asyncio.sleep(0)  # the next call returns at once if there are bytes
        data = await loop.sock_recv(connection, left)
        if not data:
            raise ConnectionResetError("the peer closed it within the handshake")
        left -= len(data)
        stream.feed(data)
        while not stream.is_up and stream.next_message() is not None:
            pass
    await loop.sock_sendall(connection, bytes(stream.outgoing))
    stream.outgoing.clear()
    return stream


def message_size(parts: list[bytes]) -> int:
    """Returns the size of all parts in bytes."""
    size = 0
    for part in parts:
        size += len(part)
    return size


@dataclass(frozen=True, slots=True)
class ConnectionHandlers:
    """The calls of a connection to its owner, which must not raise.

    is_busy: returns whether no message may be read now.
    on_opened: called at the end of the handshake.
    on_messages: called with messages, each a list of its parts.
    on_ended: called with the reason, and whether too much was unread, for a connection that has
    ended or could not be made.
    """

    is_busy: Callable[[], bool]
    on_opened: Callable[[], None]
    on_messages: Callable[[list[list[bytes]]], None]
    on_ended: Callable[[str, bool], None]


class ZmtpConnection:
    """A connection to one endpoint of an engine, read by the event loop until ``close``. Raises
    BadInput for an invalid endpoint.

    Without a request, it subscribes to all topics. It connects once. Enough unread messages are not
    read any further until its owner has taken them.

    request: sent to an endpoint for replays after the handshake. It is tried until ``close``, first
    after ``delay`` seconds. With more than ``kv_replay_unread_bytes`` unread it ends as overflown.

    Why not again: all messages of one TCP connection come from one process. Unread ones at a break
    are dropped; if the process lives, the following replay contains them.
    """

    def __init__(
        self,
        endpoint: str,
        namespace: str,
        context: ReaderContext,
        handlers: ConnectionHandlers,
        *,
        request: bytes | None = None,
        delay: float = 0.0,
    ) -> None:
        self._address = socket_address(endpoint)
        self._namespace = namespace
        self._context = context
        self._handlers = handlers
        self._request = request
        self._delay = delay
        self._kind = "SUB" if request is None else "DEALER"
        self._is_paused = True
        self._connection: socket.socket | None = None  # while it is open
        self._stream = new_stream(self._kind, context.limits)
        self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        """Connects. For replays it tries again: an engine may bind that port after that of its
        events.
        """
        while self._connection is None:
            await asyncio.sleep(self._delay)
            try:
                opened = await open_connection(self._address, self._kind, self._context.limits)
            except (OSError, ProtocolError) as error:
                if self._request is None:
                    text = "no answer in time" if isinstance(error, TimeoutError) else str(error)
                    self._handlers.on_ended(f"the connection failed: {text}", False)
                    return
                self._delay = self._context.limits.kv_reconnect_seconds
            else:
                self._connection, self._stream = opened
                self._resume()
                self.mark_ready()  # the handshake may have read more
                if self._request is not None:
                    self._send(self._request)
                self._handlers.on_opened()
                return

    def mark_ready(self) -> None:
        if self._connection is not None:
            self._context.scheduler.mark_ready(self)

    def close(self) -> None:
        """Closes the connection without a callback; unread messages are dropped."""
        self._opening.cancel()
        connection = self._connection
        if connection is None:
            return
        self._pause()
        self._connection = None
        self._report()
        self._context.scheduler.remove(self)
        connection.close()

    def read(self, max_bytes: int) -> tuple[int, bool]:
        """Reads messages of one turn, see ``ReadSource``."""
        used, has_more = 0, True
        while has_more and used < max_bytes and self._connection is not None and not self._handlers.is_busy():
            found: list[list[bytes]] = []
            # One message of a replay: after each, the owner may be busy.
            size, has_more = self._read_list(max_bytes - used if self._request is None else 1, found)
            used += size
            if found and self._connection is not None:
                self._handlers.on_messages(found)
        self._report()
        return used, self._connection is not None and used >= max_bytes

    def _read_list(self, max_bytes: int, found: list[list[bytes]]) -> tuple[int, bool]:
        """Appends messages to ``found``. Returns their cost, and whether there may be more."""
        stream = self._stream
        used = stream.read_messages(MESSAGE_OVERHEAD_BYTES, max_bytes, found)
        try:
            while used < max_bytes and (parts := stream.next_message()) is not None:
                used += message_size(parts) + MESSAGE_OVERHEAD_BYTES
                if parts:
                    found.append(parts)
        except ProtocolError as error:
            self._end(error.message)
            return used, False
        if stream.outgoing:
            self._send(bytes(stream.outgoing))
            stream.outgoing.clear()
        if used < max_bytes:
            self._resume()
        return used, used >= max_bytes

    def _send(self, data: bytes) -> None:
        """Sends some bytes. A peer that does not read them is disconnected."""
        assert self._connection is not None
        try:
            sent = self._connection.send(data)
        except OSError as error:
            self._end(str(error))
            return
        if sent < len(data):
            self._end("the peer does not read")

    def _on_readable(self) -> None:
        """Reads what has arrived: events once, a replay until nothing is left.

        Why the latter: an engine answers as fast as it can, and drops the batches that do not fit
        into its queue.
        """
        assert self._connection is not None
        is_replay, limits = self._request is not None, self._context.limits
        try:
            for _ in range(_EAGER_READS if is_replay else 1):
                data = self._connection.recv(_EAGER_READ_BYTES if is_replay else _READ_BYTES)
                if not data:
                    self._end("disconnected")
                    return
                self._stream.feed(data)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._end(str(error))
            return
        self._report()
        if self._context.buffered.is_over(self._namespace):
            self._end(
                "too many bytes of all engines are unread, and its namespace has its share of them or more",
                is_overflow=True,
            )
        elif is_replay and self._stream.held_bytes > limits.kv_replay_unread_bytes:
            self._end(f"more than {limits.kv_replay_unread_bytes} bytes are unread", is_overflow=True)
        else:
            if not is_replay and self._stream.held_bytes >= _READ_BYTES:
                self._pause()
            self.mark_ready()

    def _end(self, reason: str, *, is_overflow: bool = False) -> None:
        self.close()
        self._handlers.on_ended(reason, is_overflow)

    def _pause(self) -> None:
        if self._connection is not None and not self._is_paused:
            self._is_paused = True
            self._context.loop.remove_reader(self._connection.fileno())

    def _resume(self) -> None:
        if self._connection is not None and self._is_paused:
            self._is_paused = False
            self._context.loop.add_reader(self._connection.fileno(), self._on_readable)

    def _report(self) -> None:
        unread = 0 if self._connection is None else self._stream.held_bytes
        self._context.buffered.report(self, self._namespace, unread)


async def _resolve(address: SocketAddress) -> list[tuple[socket.AddressFamily, Any]]:
    """Returns the addresses of a host, without a thread for one that is an IP address. Raises
    OSError.
    """
    if isinstance(address, str):
        return [(socket.AF_UNIX, address)]
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise OSError(f"{host} is not a valid host name") from None
    return [(family, resolved) for family, _, _, _, resolved in found]


def _set_keepalive(connection: socket.socket) -> None:
    """Lets TCP notice a peer whose machine is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval = max(1, round(KV_HEARTBEAT_SECONDS))
    probes = max(1, round(KV_HEARTBEAT_TIMEOUT_SECONDS / interval))
    for option, value in (("TCP_KEEPIDLE", interval), ("TCP_KEEPINTVL", interval), ("TCP_KEEPCNT", probes)):
        with contextlib.suppress(AttributeError):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
