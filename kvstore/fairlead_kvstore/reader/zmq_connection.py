"""One connection to what an engine publishes. It connects once; when it is over, it is over.

ZMQ would connect again by itself, but then nothing tells whether a frame came before or after the break, that is, from which process.
So each connection has a socket of its own: what comes from it is one process's. What still lay there unread at the break is thrown
away; if the process lives, the replay that follows brings it.
"""

from functools import partial
from typing import Protocol

import zmq

from fairlead.limits import Limits
from fairlead_kvstore.reader.fair_scheduler import MESSAGE_OVERHEAD_BYTES, FairScheduler
from fairlead_kvstore.reader.timers import ReaderLoop
from fairlead_kvstore.reader.zmq_socket import (
    DISCONNECT_EVENTS,
    PolledSocket,
    ZmqSockets,
    message_size,
    receive_message,
)


class ConnectionListener(Protocol):
    """Who is told of a connection. None of it may raise."""

    def on_connected(self) -> None:
        """Both sides have greeted each other."""
        ...

    def on_disconnected(self, reason: str) -> None:
        """It is over, or never came to be. The link is closed."""
        ...

    def on_messages(self, messages: list[list[bytes]]) -> None:
        """What was read in one turn, in order; each message in its parts."""
        ...


class ZmqConnection:
    """A subscription to everything at ``endpoint``. Raises ZMQError when that is no address."""

    def __init__(
        self,
        endpoint: str,
        listener: ConnectionListener,
        *,
        sockets: ZmqSockets,
        turns: FairScheduler,
        loop: ReaderLoop,
        limits: Limits,
    ) -> None:
        self._listener = listener
        self._limits = limits
        self._is_up = False
        self._socket = sockets.open(zmq.SUB, limits.kv_pending_batches)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._monitor = sockets.monitor(self._socket)
        connect = partial(self._socket.connect, endpoint)
        self._polled = PolledSocket(self, self._socket, connect, turns=turns, loop=loop, monitor=self._monitor)
        self._polled.mark_ready()

    def read(self, most: int) -> tuple[int, bool]:
        """Its turn, see ``Turns``."""
        self._handle_monitor_events()
        used, found = 0, list[list[bytes]]()
        while self._polled.is_open and used < most:
            parts = receive_message(self._socket, self._limits.kv_frames)
            if parts is None:
                break
            used += message_size(parts) + MESSAGE_OVERHEAD_BYTES
            found.append(parts)
        if found:
            self._listener.on_messages(found)
        return used, self._polled.is_open and used >= most

    def close(self) -> None:
        """End it; the listener is not told."""
        self._polled.close()

    def _handle_monitor_events(self) -> None:
        for event, _ in self._monitor.events():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._is_up = True
                self._listener.on_connected()
            elif event & DISCONNECT_EVENTS:
                self.close()
                self._listener.on_disconnected("disconnected" if self._is_up else "it cannot be connected to")
            if not self._polled.is_open:
                return
