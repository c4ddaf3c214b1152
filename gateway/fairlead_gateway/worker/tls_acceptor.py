"""Accepts connections of a TLS port, and bounds the handshakes in progress.

Why: a server of asyncio reports a connection after its handshake. Until then it counted nowhere, so
clients that began handshakes and left them could use up descriptors and memory.
"""

import asyncio
import errno
import logging
import socket
import ssl
from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.http.connection import connection_factory
from fairlead_gateway.http.listener import Listener
from fairlead_gateway.http.sockets import LISTEN_BACKLOG

_log = logging.getLogger("fairlead.gateway")
_ACCEPTS_PER_WAKEUP: Final = 128  # then other connections come first
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_SHORTAGE_SECONDS: Final = 1.0  # without a descriptor, the port would wake the loop without end


class TlsAcceptor:
    """The handshakes of a listening socket. They count as connections of the listener.

    With too many, the oldest is reset: a handshake takes one round trip, and those that were left
    are older.
    """

    def __init__(self, listener: Listener, public: socket.socket, context: ssl.SSLContext, limits: Limits) -> None:
        self._listener = listener
        self._factory = connection_factory(listener)
        self._public = public
        self._context = context
        self._limits = limits
        self._handshakes: dict[asyncio.Task[object], socket.socket] = {}
        self._retry: asyncio.TimerHandle | None = None

    @property
    def handshake_count(self) -> int:
        """The number of handshakes in progress."""
        return len(self._handshakes)

    def start(self) -> None:
        """Starts to accept connections."""
        self._public.setblocking(False)
        self._public.listen(LISTEN_BACKLOG)
        self._listener.loop.add_reader(self._public, self._accept_some)

    def accept_pending(self) -> list[asyncio.Task[object]]:
        """Accepts all connections that the kernel has accepted, and returns their handshakes."""
        before = set(self._handshakes)
        while self._accept_one():
            pass
        return [handshake for handshake in self._handshakes if handshake not in before]

    def close(self) -> None:
        """Closes the port; handshakes in progress go on."""
        if self._retry is not None:
            self._retry.cancel()
        if self._public.fileno() >= 0:
            self._listener.loop.remove_reader(self._public)
            self._public.close()

    def _accept_some(self) -> None:
        for _ in range(_ACCEPTS_PER_WAKEUP):
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """Accepts one connection. Returns False if there is none, or no descriptor for it."""
        try:
            accepted, _ = self._public.accept()
        except ConnectionAbortedError:
            return True
        except OSError as error:
            if error.errno in _SHORTAGES:
                self._pause(error)
            return False
        accepted.setblocking(False)
        while len(self._handshakes) >= self._max_handshakes():
            self._reset_oldest()
        handshake: asyncio.Task[object] = self._listener.loop.create_task(self._shake_hands(accepted))
        self._handshakes[handshake] = accepted
        handshake.add_done_callback(self._on_done)
        return True

    def _reset_oldest(self) -> None:
        oldest = next(iter(self._handshakes))
        accepted = self._handshakes.pop(oldest)
        oldest.cancel()
        oldest.add_done_callback(lambda _: accepted.close())  # a task that has not begun leaves it open

    async def _shake_hands(self, accepted: socket.socket) -> None:
        await self._listener.loop.connect_accepted_socket(
            self._factory,
            accepted,
            ssl=self._context,
            ssl_handshake_timeout=self._limits.header_timeout_seconds,
            ssl_shutdown_timeout=self._limits.tls_shutdown_seconds,
        )

    def _max_handshakes(self) -> int:
        """Returns how many handshakes there may be, besides the connections."""
        room = self._listener.max_connections - len(self._listener.connections)
        return min(self._limits.tls_handshakes, max(self._limits.min_connections, room))

    def _on_done(self, handshake: asyncio.Task[object]) -> None:
        accepted = self._handshakes.pop(handshake, None)
        if not handshake.cancelled() and (error := handshake.exception()) is not None:
            _log.debug("a TLS handshake failed: %s", error)
            if accepted is not None:
                accepted.close()

    def _pause(self, error: OSError) -> None:
        """Stops accepting for a moment, for lack of a resource."""
        loop = self._listener.loop
        _log.warning("no connection can be accepted for %g s: %s", _SHORTAGE_SECONDS, error)
        loop.remove_reader(self._public)
        self._retry = loop.call_later(_SHORTAGE_SECONDS, loop.add_reader, self._public, self._accept_some)
