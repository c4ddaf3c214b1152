"""One connection to an engine's event publisher. It connects once and does not reconnect.

Why: ZMQ would reconnect by itself, but then nothing shows whether a frame came before or after the
break, that is, from which process. With a socket for each connection, all its frames come from one
process. Unread frames at a break are dropped; if the process lives, the following replay contains
them.
"""

from functools import partial
from typing import Protocol

import zmq

from fairlead_kvstore.reader.fair_scheduler import MESSAGE_OVERHEAD_BYTES
from fairlead_kvstore.reader.unread_bytes import PENDING_FACTOR, UnreadBytes, endpoint_port
from fairlead_kvstore.reader.zmq_socket import (
    DISCONNECT_EVENTS,
    PolledSocket,
    SocketContext,
    message_size,
    receive_message,
)


class ConnectionListener(Protocol):
    """The callbacks of a connection. They must not raise.

    model_key: the model (``namespace/name``) of the engine.
    """

    model_key: str

    @property
    def is_busy(self) -> bool:
        """Whether no further message may be read now. Then ``mark_ready`` is called later."""
        ...

    def on_connected(self) -> None:
        """Handles the end of the handshake."""
        ...

    def on_disconnected(self, reason: str) -> None:
        """Handles a connection that ended or could not be made; it is closed already."""
        ...

    def on_messages(self, messages: list[list[bytes]]) -> None:
        """Handles the messages of one turn, in order; each is a list of its parts."""
        ...

    def on_overflow(self, reason: str) -> None:
        """Handles the end of a connection of which too much is unread; it is closed already."""
        ...


class ZmqConnection:
    """A ZMQ subscription to all topics at ``endpoint``. Raises ZMQError for an invalid address."""

    def __init__(
        self,
        endpoint: str,
        listener: ConnectionListener,
        context: SocketContext,
    ) -> None:
        self.model_key = listener.model_key
        self._listener = listener
        self._limits = context.limits
        self._watch = context.unread
        self._unread: UnreadBytes | None = None
        self._max_unread = PENDING_FACTOR * context.limits.kv_pending_bytes
        self._port = endpoint_port(endpoint)
        self._is_up = False
        self._socket = context.sockets.open_subscriber()
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._monitor = context.sockets.monitor(self._socket)
        self._monitor.on_connected = self._on_descriptor
        connect = partial(self._socket.connect, endpoint)
        self._polled = PolledSocket(self, self._socket, connect, context, self._monitor)
        self._polled.mark_ready()

    def read(self, most: int) -> tuple[int, bool]:
        """Reads messages of one turn, see ``ReadSource``."""
        self._handle_monitor_events()
        used, read, is_empty, found = 0, 0, False, list[list[bytes]]()
        while self._polled.is_open and used < most and not self._listener.is_busy:
            received = receive_message(self._socket, self._limits.kv_frames)
            if received is None:
                is_empty = True
                break
            parts, size = received
            read += size
            used += message_size(parts) + MESSAGE_OVERHEAD_BYTES
            found.append(parts)
        if found:
            if self._unread is not None:
                self._unread.on_read(read)
                if is_empty:
                    self._unread.on_queue_empty()
            self._listener.on_messages(found)
        return used, self._polled.is_open and used >= most

    def mark_ready(self) -> None:
        """Schedules a read."""
        self._polled.mark_ready()

    def close(self) -> None:
        """Closes the connection without a callback."""
        if self._unread is not None:
            self._unread.close()
        self._polled.close()

    def _on_descriptor(self, descriptor: int) -> None:
        self._unread = self._watch.add(descriptor, self._port, self._max_unread, self._on_overflow)
        if self._unread is not None:
            self._unread.set_namespace(self.model_key.partition("/")[0])

    def _on_overflow(self, reason: str) -> None:
        self.close()
        self._listener.on_overflow(reason)

    def _handle_monitor_events(self) -> None:
        for event, _ in self._monitor.events():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._is_up = True
                self._listener.on_connected()
            elif event & DISCONNECT_EVENTS:
                self.close()
                self._listener.on_disconnected("disconnected" if self._is_up else "the connection failed")
            if not self._polled.is_open:
                return
