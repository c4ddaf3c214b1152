"""One connection to what an engine publishes. It connects once; when it is over, it is over.

ZMQ would connect again by itself, but then nothing tells whether a frame came before or after the break, that is, from which process.
So each connection has a socket of its own: what comes from it is one process's. What still lay there unread at the break is thrown
away; if the process lives, the replay that follows brings it.
"""

from functools import partial
from typing import Protocol

import zmq

from fairlead.limits import Limits
from fairlead_kvstore.reader.sockets import ENDS, OnLoop, Sockets, message, size
from fairlead_kvstore.reader.timers import Loop
from fairlead_kvstore.reader.turns import MESSAGE_BYTES, Turns


class Listener(Protocol):
    """Who is told of a connection. None of it may raise."""

    def up(self) -> None:
        """Both sides have greeted each other."""
        ...

    def down(self, reason: str) -> None:
        """It is over, or never came to be. The link is closed."""
        ...

    def heard(self, messages: list[list[bytes]]) -> None:
        """What was read in one turn, in order; each message in its parts."""
        ...


class Link:
    """A subscription to everything at ``endpoint``. Raises ZMQError when that is no address."""

    def __init__(
        self, endpoint: str, listener: Listener, *, sockets: Sockets, turns: Turns, loop: Loop, limits: Limits
    ) -> None:
        self._listener = listener
        self._limits = limits
        self._up = False
        self._socket = sockets.open(zmq.SUB, limits.kv_waiting_batches)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._monitor = sockets.monitor(self._socket)
        connect = partial(self._socket.connect, endpoint)
        self._held = OnLoop(self, self._socket, connect, turns=turns, loop=loop, monitor=self._monitor)
        self._held.ready()

    def read(self, most: int) -> tuple[int, bool]:
        """Its turn, see ``Turns``."""
        self._news()
        used, found = 0, list[list[bytes]]()
        while self._held.open and used < most:
            parts = message(self._socket, self._limits.kv_frames)
            if parts is None:
                break
            used += size(parts) + MESSAGE_BYTES
            found.append(parts)
        if found:
            self._listener.heard(found)
        return used, self._held.open and used >= most

    def close(self) -> None:
        """End it; the listener is not told."""
        self._held.close()

    def _news(self) -> None:
        for event, _ in self._monitor.events():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._up = True
                self._listener.up()
            elif event & ENDS:
                self.close()
                self._listener.down("disconnected" if self._up else "it cannot be connected to")
            if not self._held.open:
                return
