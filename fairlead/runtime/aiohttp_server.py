"""The HTTP server of a control-plane process, on aiohttp: `/healthz`, `/readyz` and `/metrics`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from fairlead import http_access
from fairlead.runtime.event_loop import close_server
from fairlead.runtime.process_tuning import limit_kernel_unsent

MAX_CONNECTIONS = 256
"""Open connections. For one more, the oldest is closed.

Why: any pod that reaches the port can open connections and leave them. The process needs
descriptors for the API server, and probes must be answered.
"""
MAX_KERNEL_BYTES = 128 * 1024
"""Unsent bytes of one connection that the kernel takes."""
METRICS_SECONDS = 1.0
"""A metrics page is served this long. To render one of many models takes tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of a liveness or readiness probe, with a text for people."""

    ok: bool
    text: str


def add_probes(
    app: web.Application, metrics: Collector, live: Callable[[], ProbeResult], ready: Callable[[], ProbeResult]
) -> None:
    """Adds `/healthz`, `/readyz` and `/metrics`. The two probes respond with 200 or 503."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    page = MetricsPage(lambda: generate_latest(registry), time.monotonic)

    async def healthz(_: web.Request) -> web.Response:
        return _probe_response(live())

    async def readyz(_: web.Request) -> web.Response:
        return _probe_response(ready())

    async def metrics_page(_: web.Request) -> web.Response:
        return web.Response(body=page.body(), headers={"Content-Type": "text/plain; version=0.0.4"})

    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics_page)])


class MetricsPage:
    """A page that is rendered once in `METRICS_SECONDS`, however often it is requested."""

    def __init__(self, render: Callable[[], bytes], now: Callable[[], float]) -> None:
        self._render = render
        self._now = now
        self._body = b""
        self._until: float | None = None

    def body(self) -> bytes:
        """Returns the page of this moment, or of a moment ago."""
        now = self._now()
        if self._until is None or now >= self._until:
            self._body = self._render()
            self._until = now + METRICS_SECONDS
        return self._body


@asynccontextmanager
async def serve(app: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """Serves until the block ends, and yields the listening address as `HOST:PORT`.

    Raises OSError if the port is in use.

    host: empty for all addresses.
    """
    runner = web.AppRunner(app, access_log=None)  # probes come every few seconds
    await runner.setup()
    handlers = runner.server
    assert handlers is not None

    def accept() -> asyncio.Protocol:
        transports = (handler.transport for handler in handlers.connections)
        open_ones = [transport for transport in transports if transport is not None and not transport.is_closing()]
        if len(open_ones) >= MAX_CONNECTIONS:
            open_ones[0].abort()
        return handlers()

    try:
        server = await asyncio.get_running_loop().create_server(accept, host or None, port)
        try:
            for bound in server.sockets:
                limit_kernel_unsent(bound, MAX_KERNEL_BYTES)
            bound_host, bound_port = server.sockets[0].getsockname()[:2]
            yield f"[{bound_host}]:{bound_port}" if ":" in bound_host else f"{bound_host}:{bound_port}"
        finally:
            await close_server(server)
    finally:
        await runner.cleanup()


@web.middleware
async def refuse_foreign_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers 403 on loopback to pages of other sites, for a port without rules of its own."""
    if http_access.is_loopback_socket(request.transport) and http_access.is_foreign_page(request.headers.get):
        return web.Response(status=403, text=http_access.FOREIGN_PAGE_MESSAGE + "\n")
    return await handler(request)


def _probe_response(result: ProbeResult) -> web.Response:
    return web.Response(status=200 if result.ok else 503, text=result.text + "\n")
