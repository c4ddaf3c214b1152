"""A worker's public port, and its end: it says unready, accepts no more, and lets what is in flight finish.

Idle connections stay open for a moment, so that a request that is already on its way is answered, with ``connection: close``.
"""

import asyncio
import socket

from fairlead_gateway.http.connection import connection_factory
from fairlead_gateway.http.sockets import LISTEN_BACKLOG, refuse_new_connections
from fairlead_gateway.http.tls import TlsCertificate
from fairlead_gateway.worker.proxy.gateway import Gateway

_DRAIN_POLL_SECONDS = 0.02
HANDSHAKE_SECONDS = 0.05  # for handshakes that are under way: whom the kernel has let in is served too
_TLS_SHUTDOWN_SECONDS = 2.0  # for a TLS client to say goodbye too
IDLE_SECONDS = 1.0  # for clients to read their last bytes, or to learn on their next request that this is the end


class PublicServer:
    """Serves a gateway on a listening socket; ``certificate`` (loaded) is what the port shows."""

    def __init__(self, gateway: Gateway, public: socket.socket, certificate: TlsCertificate | None = None) -> None:
        self._gateway = gateway
        self._public = public
        self._certificate = certificate
        self._server: asyncio.Server | None = None
        self._pending_accepts: list[asyncio.Task[object]] = []

    async def start(self) -> None:
        """Accept connections."""
        gateway = self._gateway
        secure = self._certificate.context if self._certificate is not None else None
        gateway.lag.start()
        self._server = await asyncio.get_running_loop().create_server(
            connection_factory(gateway.listener),
            sock=self._public,
            backlog=LISTEN_BACKLOG,
            ssl=secure,
            ssl_handshake_timeout=gateway.limits.header_timeout_seconds if secure is not None else None,
            ssl_shutdown_timeout=_TLS_SHUTDOWN_SECONDS if secure is not None else None,
        )

    async def drain(self) -> None:
        """Be unready, let nobody new in, accept whom the kernel has let in, and wait until nothing is in flight, or the limit."""
        self._gateway.drain()
        refuse_new_connections(self._public)
        await asyncio.sleep(HANDSHAKE_SECONDS)
        if self._server is not None:
            self._accept_pending()
            self._server.close()
        await asyncio.gather(*self._pending_accepts, return_exceptions=True)
        await self._wait_until_idle()

    def _accept_pending(self) -> None:
        """Take what the kernel has let in until this very moment: closing the port would reset it, and its clients may have
        sent a request already."""
        loop, make = asyncio.get_running_loop(), connection_factory(self._gateway.listener)
        secure = self._certificate.context if self._certificate is not None else None
        patience = self._gateway.limits.header_timeout_seconds if secure is not None else None
        with self._public.dup() as port:
            while True:
                try:
                    knocked, _ = port.accept()
                except OSError:
                    return
                knocked.setblocking(False)
                made = loop.connect_accepted_socket(make, knocked, ssl=secure, ssl_handshake_timeout=patience)
                self._pending_accepts.append(loop.create_task(made))

    def close(self) -> None:
        """Cut what is left."""
        if self._server is not None:
            self._server.close()
        else:
            self._public.close()
        self._gateway.lag.stop()
        self._gateway.close()

    async def _wait_until_idle(self) -> None:
        """Until nobody is connected, or nothing has been in flight for a moment. A request that still comes over an idle connection
        is answered whole, and the moment begins anew.

        It looks again and again: the hot path sets no event for the end of its work.
        """
        gateway, listener = self._gateway, self._gateway.listener
        end, idle_since = gateway.clock.now() + gateway.limits.drain_seconds, None
        while (now := gateway.clock.now()) < end:
            if gateway.inflight_count() or listener.count_busy():
                idle_since = None
            elif not listener.connections:
                return
            else:
                idle_since = now if idle_since is None else idle_since
                if now - idle_since >= IDLE_SECONDS:
                    return
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
