"""The public port of a worker: connections, TLS handshakes, and the drain.

A drain reports unready, accepts no more connections, and lets requests in flight finish. Idle
connections stay open for a moment: a request already on its way is answered, with
`connection: close`.

At the end of the drain every request that is left gets an error: a stream as its last event, any
other a 503. Their connections close in order, as far as clients read within `drain_end_seconds`.

`TlsAcceptor` accepts the connections of a TLS port, and bounds the handshakes in progress.

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
from fairlead.runtime.event_loop import close_server
from fairlead.runtime.process_tuning import limit_kernel_unsent
from fairlead_gateway.http.connection import connection_factory
from fairlead_gateway.http.listener import Listener
from fairlead_gateway.http.sockets import LISTEN_BACKLOG, refuse_new_connections
from fairlead_gateway.http.tls_certificate import TlsCertificate
from fairlead_gateway.messages import DRAIN_END_SECONDS
from fairlead_gateway.proxy.gateway import Gateway

TLS_SHUTDOWN_SECONDS: Final = 2.0
"""Limit: how long a closing connection waits for a TLS client's close_notify."""

_log = logging.getLogger("fairlead.gateway")
_ACCEPTS_PER_WAKEUP: Final = 128  # then other connections come first
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_SHORTAGE_SECONDS: Final = 1.0  # without a descriptor, the port would wake the loop without end

_DRAIN_POLL_SECONDS = 0.02
HANDSHAKE_SECONDS = 0.05  # for handshakes in progress: clients that the kernel has accepted are served
IDLE_SECONDS = 1.0  # for clients to read their last bytes, or to see `connection: close` on one more request


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
            ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
        )

    def _max_handshakes(self) -> int:
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


class PublicServer:
    """The server of a gateway on a listening socket.

    certificate: already loaded; None: the port has no TLS.
    siblings: a further listening socket, without TLS, for requests of other workers.
    """

    def __init__(
        self,
        gateway: Gateway,
        public: socket.socket,
        certificate: TlsCertificate | None = None,
        siblings: socket.socket | None = None,
    ) -> None:
        self._gateway = gateway
        self._public = public
        context = certificate.context if certificate is not None else None
        self._acceptor = (
            None if context is None else TlsAcceptor(gateway.listener, public, context, gateway.runtime.limits)
        )
        self._server: asyncio.Server | None = None
        self._siblings = siblings
        self._sibling_server: asyncio.Server | None = None
        self._pending_accepts: list[asyncio.Task[object]] = []
        self._ends_drain_now = False

    async def start(self) -> None:
        """Starts to accept connections."""
        self._gateway.loop_lag.start()
        limit_kernel_unsent(self._public)
        if self._siblings is not None:
            self._sibling_server = await asyncio.get_running_loop().create_server(
                connection_factory(self._gateway.listener), sock=self._siblings, backlog=LISTEN_BACKLOG
            )
        if self._acceptor is not None:
            self._acceptor.start()
            return
        self._server = await asyncio.get_running_loop().create_server(
            connection_factory(self._gateway.listener), sock=self._public, backlog=LISTEN_BACKLOG
        )

    async def drain(self) -> None:
        """Refuses new connections, and waits until nothing is in flight, at most `drain_seconds`.

        Connections that the kernel has accepted until then are served. What is still in flight at
        the end gets an error.
        """
        limits, now = self._gateway.runtime.limits, self._gateway.runtime.now
        end = now() + limits.drain_seconds
        self._gateway.drain()
        if self._sibling_server is not None:
            await close_server(self._sibling_server)  # its replacement accepts from now on
        refuse_new_connections(self._public)
        await asyncio.sleep(HANDSHAKE_SECONDS)
        if self._acceptor is not None:
            self._pending_accepts += self._acceptor.accept_pending()
            self._acceptor.close()
        elif self._server is not None:
            self._accept_pending()
            await close_server(self._server)
        await asyncio.gather(*self._pending_accepts, return_exceptions=True)
        if not await self._wait_until_idle(end):
            self._gateway.end_drain()
            self._ends_drain_now = False
            await self._wait_until_idle(now() + DRAIN_END_SECONDS)

    def end_drain(self) -> None:
        self._ends_drain_now = True

    def close(self) -> None:
        """Closes the ports and ends all requests."""
        if self._sibling_server is not None:
            self._sibling_server.close()
        if self._acceptor is not None:
            self._acceptor.close()
        elif self._server is not None:
            self._server.close()
        else:
            self._public.close()
        self._gateway.loop_lag.stop()
        self._gateway.close()

    def _accept_pending(self) -> None:
        """Accepts the connections that the kernel has accepted until now.

        Why: closing the port would reset them, and their clients may have sent a request already.
        """
        loop, factory = asyncio.get_running_loop(), connection_factory(self._gateway.listener)
        with self._public.dup() as port:
            while True:
                try:
                    accepted, _ = port.accept()
                except OSError:
                    return
                accepted.setblocking(False)
                connecting = loop.connect_accepted_socket(factory, accepted)
                self._pending_accepts.append(loop.create_task(connecting))

    async def _wait_until_idle(self, end: float) -> bool:
        """Waits until no client is connected, or nothing has been in flight for `IDLE_SECONDS`.

        A request that still comes over an idle connection is answered, and the wait starts again.
        Returns False if that has not happened at `end`, or the drain is to end now.

        Why it polls: the hot path sets no event when a request ends.
        """
        gateway, listener, now = self._gateway, self._gateway.listener, self._gateway.runtime.now
        idle_since = None
        while True:
            time = now()
            if gateway.inflight_count() or listener.count_busy():
                idle_since = None
            elif not listener.connections:
                return True
            else:
                idle_since = time if idle_since is None else idle_since
                if time - idle_since >= IDLE_SECONDS:
                    return True
            if time >= end or self._ends_drain_now:
                return False
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
