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
"""The bytes of one read. A connection without a bound of its own pauses at as many unread bytes."""
_EAGER_READ_BYTES: Final = 262_144
"""The bytes of one read of a connection that has a bound of its own."""
_EAGER_READS: Final = 16
"""The reads of such a connection before other work."""
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
    """Returns the stream of a new connection. ``kind``: ``SUB`` or ``DEALER``."""
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


class ZmtpConnection:
    """A connection to one endpoint of an engine, read by the event loop until ``close``.

    It connects once. Raises BadInput for an invalid endpoint. Subclasses handle its messages; their
    methods must not raise.

    kind: ``SUB`` or ``DEALER``.
    is_busy: returns whether no message may be read now.
    max_unread: with more unread bytes it ends as overflown; None: it is not read any further until
    the subclass has taken what there is.
    """

    def __init__(
        self,
        endpoint: str,
        kind: str,
        model_key: str,
        context: ReaderContext,
        is_busy: Callable[[], bool],
        *,
        max_unread: int | None = None,
    ) -> None:
        self.model_key = model_key
        self.is_open = False
        self._address = socket_address(endpoint)
        self._kind = kind
        self._context = context
        self._is_busy = is_busy
        self._namespace = model_key.partition("/")[0]
        self._max_unread = max_unread
        self._reported = 0
        self._is_paused = True
        self._connection: socket.socket | None = None
        self._stream = new_stream(kind, context.limits)
        self._opening = asyncio.get_running_loop().create_task(self._open())

    def on_opened(self) -> None:
        """Handles the end of the handshake."""

    def on_messages(self, messages: list[list[bytes]]) -> None:
        """Handles messages, each a list of its parts."""

    def on_ended(self, reason: str, *, is_overflow: bool) -> None:
        """Handles the end of the connection, which is closed already, or could not be made.

        is_overflow: too much of it was unread.
        """

    async def _open(self) -> None:
        try:
            opened = await open_connection(self._address, self._kind, self._context.limits)
        except (OSError, ProtocolError) as error:
            text = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            self.on_ended(f"the connection failed: {text}", is_overflow=False)
        else:
            self._begin(*opened)

    def _begin(self, connection: socket.socket, stream: ZmtpStream) -> None:
        """Reads a connection after its handshake."""
        self._connection, self._stream, self.is_open = connection, stream, True
        self._resume()
        self.mark_ready()  # the handshake may have read more
        self.on_opened()

    def read(self, max_bytes: int) -> tuple[int, bool]:
        """Reads messages of one turn, see ``ReadSource``."""
        used, has_more = 0, True
        while has_more and used < max_bytes and self.is_open and not self._is_busy():
            found: list[list[bytes]] = []
            size, has_more = self._read_list(self._list_bytes(max_bytes - used), found)
            used += size
            if found and self.is_open:
                self.on_messages(found)
        if self.is_open:
            self._report(self._stream.held_bytes)
        return used, self.is_open and used >= max_bytes

    def _list_bytes(self, left: int) -> int:
        """Returns the bytes of messages that are handled together, of those left in the turn."""
        return left

    def _read_list(self, max_bytes: int, found: list[list[bytes]]) -> tuple[int, bool]:
        """Appends messages to ``found``. Returns their cost, and whether there may be more."""
        used = self._stream.read_messages(MESSAGE_OVERHEAD_BYTES, max_bytes, found)
        while used < max_bytes:
            parts = self._next_message()
            if parts is None:
                return used, False
            used += message_size(parts) + MESSAGE_OVERHEAD_BYTES
            if parts:
                found.append(parts)
        return used, True

    def send(self, data: bytes) -> None:
        """Sends some bytes. A peer that does not read them is disconnected."""
        if self._connection is None or not self.is_open:
            return
        try:
            sent = self._connection.send(data)
        except OSError as error:
            self._end(str(error))
            return
        if sent < len(data):
            self._end("the peer does not read")

    def mark_ready(self) -> None:
        """Schedules a read."""
        if self.is_open:
            self._context.scheduler.mark_ready(self)

    def close(self) -> None:
        """Closes the connection without a callback; unread messages are dropped."""
        self._opening.cancel()
        if self._connection is None or not self.is_open:
            return
        self.is_open = False
        self._pause()
        self._report(0)
        self._context.scheduler.remove(self)
        self._connection.close()

    def _next_message(self) -> list[bytes] | None:
        """Returns the parts of the next message; empty for a command of the protocol. None when
        there is none now, or when the connection has ended.
        """
        if not self.is_open:
            return None
        try:
            found = self._stream.next_message()
        except ProtocolError as error:
            self._end(error.message)
            return None
        if self._stream.outgoing:
            answer = bytes(self._stream.outgoing)
            self._stream.outgoing.clear()
            self.send(answer)
        if found is None and self.is_open:
            self._report(self._stream.held_bytes)
            self._resume()
        return found

    def _on_readable(self) -> None:
        """Reads what has arrived: once, or with a bound of its own until nothing is left.

        Why the latter: an engine drops the batches of a replay that do not fit into its queue.
        """
        assert self._connection is not None
        turns = 1 if self._max_unread is None else _EAGER_READS
        try:
            for _ in range(turns):
                data = self._connection.recv(_READ_BYTES if self._max_unread is None else _EAGER_READ_BYTES)
                if not data:
                    self._end("disconnected")
                    return
                self._stream.feed(data)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._end(str(error))
            return
        self._check_unread()

    def _check_unread(self) -> None:
        unread = self._stream.held_bytes
        self._report(unread)
        if self._context.unread.is_over(self._namespace):
            self._end(
                "too many bytes of all engines are unread, and its namespace has its share of them or more",
                is_overflow=True,
            )
        elif self._max_unread is not None and unread > self._max_unread:
            self._end(f"more than {self._max_unread} bytes are unread", is_overflow=True)
        else:
            if self._max_unread is None and unread >= _READ_BYTES:
                self._pause()
            self.mark_ready()

    def _end(self, reason: str, *, is_overflow: bool = False) -> None:
        self.close()
        self.on_ended(reason, is_overflow=is_overflow)

    def _pause(self) -> None:
        if self._connection is not None and not self._is_paused:
            self._is_paused = True
            self._context.loop.remove_reader(self._connection.fileno())

    def _resume(self) -> None:
        if self._connection is not None and self._is_paused and self.is_open:
            self._is_paused = False
            self._context.loop.add_reader(self._connection.fileno(), self._on_readable)

    def _report(self, unread: int) -> None:
        if unread != self._reported:
            self._context.unread.add(self._namespace, unread - self._reported)
            self._reported = unread


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
