"""The public port of a worker, and its drain.

A drain reports unready, accepts no more connections, and lets requests in flight finish. Idle
connections stay open for a moment: a request already on its way is answered, with
`connection: close`.

At the end of the drain every request that is left gets an error: a stream as its last event, any
other a 503. Their connections close in order, as far as clients read within `drain_end_seconds`.
"""

import asyncio
import socket

from fairlead.runtime.event_loop import close_server
from fairlead.runtime.process_tuning import limit_kernel_unsent
from fairlead_gateway.http.connection import connection_factory
from fairlead_gateway.http.sockets import LISTEN_BACKLOG, refuse_new_connections
from fairlead_gateway.http.tls import TlsCertificate
from fairlead_gateway.worker.proxy.gateway import Gateway
from fairlead_gateway.worker.tls_acceptor import TlsAcceptor

_DRAIN_POLL_SECONDS = 0.02
HANDSHAKE_SECONDS = 0.05  # for handshakes in progress: clients that the kernel has accepted are served
IDLE_SECONDS = 1.0  # for clients to read their last bytes, or to see `connection: close` on one more request


class PublicServer:
    """The server of a gateway on a listening socket.

    certificate: already loaded; None: the port has no TLS.
    """

    def __init__(self, gateway: Gateway, public: socket.socket, certificate: TlsCertificate | None = None) -> None:
        self._gateway = gateway
        self._public = public
        context = certificate.context if certificate is not None else None
        self._acceptor = (
            None if context is None else TlsAcceptor(gateway.listener, public, context, gateway.runtime.limits)
        )
        self._server: asyncio.Server | None = None
        self._pending_accepts: list[asyncio.Task[object]] = []
        self._ends_drain_now = False

    async def start(self) -> None:
        """Starts to accept connections."""
        self._gateway.loop_lag.start()
        limit_kernel_unsent(self._public, self._gateway.runtime.limits.kernel_unsent_bytes)
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
            await self._wait_until_idle(now() + limits.drain_end_seconds)

    def end_drain(self) -> None:
        """Ends a drain now; requests in flight get an error."""
        self._ends_drain_now = True

    def close(self) -> None:
        """Closes the port and ends all requests."""
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
