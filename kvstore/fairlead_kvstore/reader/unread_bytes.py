"""The bytes that engines have sent and the reader has not read, bounded for each connection.

Why: ZMQ's own threads fill its queues, and its limits count whole messages. A message counts when
its last part has arrived, so an engine can send parts of one message without end. The kernel counts
the bytes of a connection (``tcpi_bytes_received``). A timer compares them with what was read.

The bound is not exact: between two checks an engine sends as much as its network carries.
"""

import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from fairlead.limits import Limits
from fairlead_kvstore.reader.timers import OneShotTimer, ReaderLoop

PENDING_FACTOR: Final = 2
"""The bound for a subscriber's connection, in ``kv_pending_bytes``.

Why: a full queue of whole messages is no overflow. The kernel's buffer and a partial message come
in addition.
"""
_BYTES_RECEIVED: Final = struct.Struct("=Q")
_BYTES_RECEIVED_OFFSET: Final = 128
"""The place of ``tcpi_bytes_received`` in Linux's ``struct tcp_info``."""
_MAX_TCP_INFO_BYTES: Final = 256
_MAX_CHECKED_CONNECTIONS: Final = 512


def endpoint_port(endpoint: str) -> int:
    """Returns the port of a ZMQ endpoint; 0 if it has none."""
    port = endpoint.rpartition(":")[2]
    return int(port) if port.isascii() and port.isdigit() else 0


class UnreadBytes:
    """The number of unread bytes of one TCP connection of ZMQ. Call ``close`` at its end.

    max_bytes: the bound.
    on_overflow: called when there are more; it closes this.
    """

    def __init__(self, connection: socket.socket, max_bytes: int, on_overflow: Callable[[], None]) -> None:
        self.max_bytes = max_bytes
        self.on_overflow = on_overflow
        self.is_open = True
        self._connection = connection
        self._read = 0

    @property
    def count(self) -> int:
        """The unread bytes; 0 if the kernel does not count them."""
        return self._received() - self._read

    def on_read(self, size: int) -> None:
        """Counts bytes that were read."""
        self._read += size

    def on_all_read(self) -> None:
        """Counts all bytes so far as read."""
        self._read = self._received()

    def shut_down(self) -> None:
        """Ends the connection, which ZMQ then notices."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the count."""
        self.is_open = False
        self._connection.close()

    def _received(self) -> int:
        try:
            info = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MAX_TCP_INFO_BYTES)
            return int(_BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_OFFSET)[0])
        except (OSError, AttributeError, struct.error):  # not Linux, or an old kernel
            return 0


class UnreadWatch:
    """The periodic check of all connections, some hundred at a time in rotation."""

    def __init__(self, loop: ReaderLoop, limits: Limits) -> None:
        self._seconds = limits.kv_unread_check_seconds
        self._timer = OneShotTimer(loop)
        self._connections: deque[UnreadBytes] = deque()

    def add(self, descriptor: int, port: int, max_bytes: int, on_overflow: Callable[[], None]) -> UnreadBytes | None:
        """Starts to watch the connection of a descriptor that ZMQ reported.

        Returns None if the descriptor is no connection from or to ``port`` any more.

        Why: ZMQ closes descriptors in its own thread, and their numbers are used again.
        """
        try:
            connection = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            return None
        try:
            ports = {address[1] for address in (connection.getsockname(), connection.getpeername())}
        except (OSError, IndexError):
            ports = set()
        if port not in ports:
            connection.close()
            return None
        unread = UnreadBytes(connection, max_bytes, on_overflow)
        self._connections.append(unread)
        if not self._timer.is_set:
            self._timer.set(self._seconds, self._check)
        return unread

    def close(self) -> None:
        """Stops the checks."""
        self._timer.clear()
        while self._connections:
            self._connections.popleft().close()

    def _check(self) -> None:
        for _ in range(min(len(self._connections), _MAX_CHECKED_CONNECTIONS)):
            unread = self._connections.popleft()
            if not unread.is_open:
                continue
            self._connections.append(unread)
            if unread.count > unread.max_bytes:
                unread.on_overflow()
        if self._connections:
            self._timer.set(self._seconds, self._check)


class BufferedBytes:
    """The bytes that all subscriptions of an indexer have buffered during replays, by namespace.

    Why: each may buffer 64 MiB while it waits for its replay, and any number of them may wait.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._namespaces: dict[str, int] = {}

    @property
    def total(self) -> int:
        """The bytes of all namespaces."""
        return sum(self._namespaces.values())

    def add(self, namespace: str, change: int) -> None:
        """Adds a change of a subscription's bytes."""
        size = self._namespaces.get(namespace, 0) + change
        if size > 0:
            self._namespaces[namespace] = size
        else:
            self._namespaces.pop(namespace, None)

    def is_over(self, namespace: str) -> bool:
        """Returns whether a namespace is to buffer no more: all have too many bytes together, and
        it has a mean share or more.
        """
        total = self.total
        return total > self._max_bytes and self._namespaces.get(namespace, 0) * len(self._namespaces) >= total
