"""A gateway as a process: its two ports, the fleet it follows, and its end.

The management port runs on the same event loop behind uvicorn; the public port is raw protocols. On the signal to stop the gateway
says unready, accepts no more, lets what is in flight finish as long as the limits allow, and returns.
"""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from fairlead.errors import FairleadError
from fairlead.fleet import Fleet, FleetSource
from fairlead_gateway.beside import Beside
from fairlead_gateway.gateway import Gateway
from fairlead_gateway.management import management_app
from fairlead_gateway.tls import Certificate
from fairlead_gateway.watch import Watch

_BACKLOG = 4096
_DRAIN_POLL_SECONDS = 0.02
_KNOCKED_SECONDS = 0.05  # connections that the kernel has accepted already are served too
_GOODBYE_SECONDS = 2.0  # for a TLS client to say goodbye too
_QUIET_SECONDS = 1.0  # for clients to read their last bytes, or to learn on their next request that this is the end


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 is a free one."""

    host: str
    port: int

    def bind(self) -> socket.socket:
        """A listening socket."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        return socket.create_server((self.host, self.port), family=family, backlog=_BACKLOG)


def url(bound: socket.socket, *, secure: bool = False) -> str:
    """The URL of a listening socket."""
    host, port = bound.getsockname()[:2]
    return f"http{'s' if secure else ''}://{f'[{host}]' if ':' in host else host}:{port}"


class _Management(uvicorn.Server):
    """uvicorn without its signal handlers: the process has one that knows about requests in flight."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, and say when it is done."""
        await super().startup(sockets)
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Runs one gateway; ``token`` guards its management API, which is reached under ``hosts`` too. ``watches`` are loaded
    before the first request and followed; one of them holds the ``certificate`` that the public port shows.

    ``announce`` gets the line that says where it listens.
    """

    def __init__(
        self,
        gateway: Gateway,
        source: FleetSource,
        *,
        listen: Address,
        manage: Address,
        beside: Beside,
        watches: Sequence[Watch] = (),
        certificate: Certificate | None = None,
        token: str | None,
        hosts: Sequence[str] = (),
        announce: Callable[[str], None],
    ) -> None:
        self._gateway = gateway
        self._source = source
        self._listen = listen
        self._manage = manage
        self._beside = beside
        self._watches = watches
        self._certificate = certificate
        self._token = token
        self._hosts = hosts
        self._announce = announce
        self._problem: str | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then drain. Raises FairleadError when a file cannot be read at the start."""
        try:
            for watch in self._watches:
                await watch.start()
            await self._run(stop)
        finally:
            for watch in self._watches:
                await watch.stop()

    async def _run(self, stop: asyncio.Event) -> None:
        gateway = self._gateway
        snapshots = self._source.watch()
        gateway.apply(await anext(snapshots))
        gateway.problems = self._problems
        loop = asyncio.get_running_loop()
        gateway.lag.start()
        public, private = self._listen.bind(), self._manage.bind()
        secure = self._certificate.context if self._certificate is not None else None
        server = await loop.create_server(
            gateway.listener.protocol,
            sock=public,
            backlog=_BACKLOG,
            ssl=secure,
            ssl_handshake_timeout=gateway.limits.header_deadline_seconds if secure is not None else None,
            ssl_shutdown_timeout=_GOODBYE_SECONDS if secure is not None else None,
        )
        config = uvicorn.Config(
            management_app(self._beside, token=self._token, hosts=self._hosts),
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        management = _Management(config)
        serving = loop.create_task(management.serve(sockets=[private]))
        following = loop.create_task(self._follow(snapshots))
        self._beside.start()
        try:
            await management.up.wait()
            gc.freeze()
            gc.set_threshold(50_000, 50, 100)
            self._announce(f"ready {url(public, secure=secure is not None)} manage {url(private)}")
            await stop.wait()
            gateway.drain()
            await asyncio.sleep(_KNOCKED_SECONDS)
            server.close()
            await self._drained()
        finally:
            server.close()
            following.cancel()
            gateway.lag.stop()
            gateway.close()
            management.should_exit = True
            await asyncio.gather(serving, following, return_exceptions=True)
            await self._beside.stop()
            private.close()

    async def _drained(self) -> None:
        """Wait until nothing is in flight, or the limit; then a moment for idle connections to end by themselves."""
        gateway, listener = self._gateway, self._gateway.listener
        await self._until(lambda: not gateway.in_flight() and not listener.busy(), gateway.limits.drain_seconds)
        await self._until(lambda: not listener.connections, _QUIET_SECONDS)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Look again and again, for ``seconds`` at most: the hot path sets no event for the end of its work."""
        clock = self._gateway.clock
        end = clock.now() + seconds
        while not condition() and clock.now() < end:  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_POLL_SECONDS)

    async def _follow(self, snapshots: AsyncIterator[Fleet]) -> None:
        """Apply every further snapshot; one that cannot be applied leaves the last one in use."""
        async for fleet in snapshots:
            try:
                self._gateway.apply(fleet)
                self._problem = None
            except FairleadError as error:
                self._problem = f"the last fleet was not taken: {error}"

    def _problems(self) -> list[str]:
        problem = getattr(self._source, "problem", None)
        found = [self._problem, f"the fleet file cannot be used: {problem}" if problem else None]
        found += [watch.problem for watch in self._watches]
        return [*(text for text in found if text), *self._beside.notes()]
