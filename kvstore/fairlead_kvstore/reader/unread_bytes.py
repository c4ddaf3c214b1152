"""The bytes that engines have sent and the reader has not read, bounded for each connection and for
all connections of an indexer together.

Why: ZMQ's own threads fill its queues, and its limits count whole messages. A message counts when
its last part has arrived, so an engine can send parts of one message without end. The kernel counts
the bytes of a connection (``tcpi_bytes_received``). A timer compares them with what was read.

The bound is not exact: between two checks an engine sends as much as its network carries.
"""

import contextlib
import os
import socket
import struct
from collections import defaultdict, deque
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
_MAX_DRIFT_BYTES: Final = 4_096
"""Up to so many uncounted bytes are heartbeats. They count as read once no message is left."""

OverflowCallback = Callable[[str], None]
"""Called with the reason; it closes the connection's ``UnreadBytes``."""


def endpoint_port(endpoint: str) -> int:
    """Returns the port of a ZMQ endpoint; 0 if it has none."""
    port = endpoint.rpartition(":")[2]
    return int(port) if port.isascii() and port.isdigit() else 0


class UnreadBytes:
    """The number of unread bytes of one TCP connection of ZMQ. Call ``close`` at its end.

    max_bytes: the bound.
    shared: the count of all connections.
    on_overflow: called when there are more.
    """

    def __init__(
        self, connection: socket.socket, max_bytes: int, shared: "BufferedBytes", on_overflow: OverflowCallback
    ) -> None:
        self.max_bytes = max_bytes
        self.on_overflow = on_overflow
        self.is_open = True
        self.namespace = ""
        self.reported = 0
        self._connection = connection
        self._shared = shared
        self._read = 0

    @property
    def count(self) -> int:
        """The unread bytes; 0 if the kernel does not count them."""
        return self._received() - self._read

    def on_read(self, size: int) -> None:
        """Counts bytes that were read."""
        self._read += size

    def on_queue_empty(self) -> None:
        """Corrects the count after the last whole message was read."""
        if self.count <= _MAX_DRIFT_BYTES:
            self._read = self._received()

    def set_namespace(self, namespace: str) -> None:
        """Counts the bytes for the namespace of the engine; before, it was unknown (empty)."""
        if namespace != self.namespace:
            self._report(0)
            self.namespace = namespace

    def report(self) -> int:
        """Returns the unread bytes, and counts them with those of all connections."""
        count = self.count
        self._report(max(0, count))
        return count

    def shut_down(self) -> None:
        """Ends the connection, which ZMQ then notices."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the count."""
        self._report(0)
        self.is_open = False
        self._connection.close()

    def _report(self, count: int) -> None:
        self._shared.add(self.namespace, count - self.reported)
        self.reported = count

    def _received(self) -> int:
        try:
            info = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MAX_TCP_INFO_BYTES)
            return int(_BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_OFFSET)[0])
        except (OSError, AttributeError, struct.error):  # not Linux, or an old kernel
            return 0


class UnreadWatch:
    """The periodic check of all connections, some hundred at a time in rotation.

    buffered: the unread bytes of all connections, as of the last check of each.
    """

    def __init__(self, loop: ReaderLoop, limits: Limits) -> None:
        self.buffered = BufferedBytes(limits.kv_all_unread_bytes)
        self._seconds = limits.kv_unread_check_seconds
        self._timer = OneShotTimer(loop)
        self._connections: deque[UnreadBytes] = deque()

    def add(self, descriptor: int, port: int, max_bytes: int, on_overflow: OverflowCallback) -> UnreadBytes | None:
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
        unread = UnreadBytes(connection, max_bytes, self.buffered, on_overflow)
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
            if unread.report() > unread.max_bytes:
                unread.on_overflow(f"more than {unread.max_bytes} bytes are unread")
        if self.buffered.is_exceeded:
            self._end_largest()
        if self._connections:
            self._timer.set(self._seconds, self._check)

    def _end_largest(self) -> None:
        """Ends connections of the namespace with most unread bytes, those with most first, until
        all have few enough.
        """
        by_namespace: dict[str, list[UnreadBytes]] = defaultdict(list)
        for unread in sorted(self._connections, key=lambda unread: unread.reported):
            if unread.is_open:
                by_namespace[unread.namespace].append(unread)
        while self.buffered.is_exceeded and (largest := by_namespace[self.buffered.largest()]):
            largest.pop().on_overflow("too many bytes of all engines are unread, most of them of its namespace")


class BufferedBytes:
    """Bytes that all engines of an indexer occupy, by namespace, and their bound.

    Why: each engine has a bound of its own, some of 64 MiB, and any number of engines may reach it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._namespaces: dict[str, int] = {}

    @property
    def total(self) -> int:
        """The bytes of all namespaces."""
        return sum(self._namespaces.values())

    @property
    def is_exceeded(self) -> bool:
        """Whether all have more than the bound."""
        return self.total > self._max_bytes

    def largest(self) -> str:
        """Returns the namespace with most bytes. Raises ValueError if there are none."""
        return max(self._namespaces, key=self._namespaces.__getitem__)

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
