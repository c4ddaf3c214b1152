"""What probes, scrapers and browsers ask of the management port: answered without the framework, so that it need not be loaded."""

import asyncio
from typing import NamedTuple

import msgspec

from fairlead_gateway.supervisor.management.status_page import load_page
from fairlead_gateway.supervisor.management.view import GatewayView
from fairlead_gateway.telemetry.exposition import CONTENT_TYPE


class ProbeResponse(NamedTuple):
    """``headers`` begin with the content type."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Probes:
    """The paths that need no token."""

    def __init__(self, view: GatewayView) -> None:
        self._view = view
        self.handlers = {"/": self.status_page, "/readyz": self.readyz, "/metrics": self.metrics}

    async def status_page(self) -> ProbeResponse:
        """The page, which asks the API for what it shows."""
        page, policy = load_page()
        headers = (("content-type", "text/html; charset=utf-8"), ("content-security-policy", policy))
        return ProbeResponse(200, headers, page)

    async def readyz(self) -> ProbeResponse:
        """200 while requests are answered, else 503."""
        look = await self._view.status()
        body = msgspec.json.encode({"ready": look.ready, "notes": look.warnings})
        return ProbeResponse(200 if look.ready else 503, (("content-type", "application/json"),), body)

    async def metrics(self) -> ProbeResponse:
        """Prometheus text. The loop has its turn between two pieces."""
        view = self._view
        pieces: list[bytes] = []
        look, telemetry = await view.status(), await view.counters(windows=False)
        telemetry.loop_lag, telemetry.queued = look.lag, look.queued
        for piece in telemetry.render_chunks(view.fleet(), look.loads, view.clock.now()):
            pieces.append(piece)
            await asyncio.sleep(0)
        return ProbeResponse(200, (("content-type", CONTENT_TYPE),), b"".join(pieces))
