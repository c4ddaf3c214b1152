"""The HTTP server of a control-plane process, on aiohttp: `/healthz`, `/readyz` and `/metrics`."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector


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

    async def healthz(_: web.Request) -> web.Response:
        return _probe_response(live())

    async def readyz(_: web.Request) -> web.Response:
        return _probe_response(ready())

    async def metrics_page(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics_page)])


@asynccontextmanager
async def serve(app: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """Serves until the block ends, and yields the listening address as `HOST:PORT`.

    Raises OSError if the port is in use.

    host: empty for all addresses.
    """
    runner = web.AppRunner(app, access_log=None)  # probes come every few seconds
    await runner.setup()
    try:
        await web.TCPSite(runner, host or None, port).start()
        bound_host, bound_port = runner.addresses[0][:2]
        yield f"[{bound_host}]:{bound_port}" if ":" in bound_host else f"{bound_host}:{bound_port}"
    finally:
        await runner.cleanup()


def _probe_response(result: ProbeResult) -> web.Response:
    return web.Response(status=200 if result.ok else 503, text=result.text + "\n")
