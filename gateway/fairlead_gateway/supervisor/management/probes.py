"""Answers for probes, scrapers and browsers, without the framework of the API."""

import asyncio
from functools import partial
from typing import NamedTuple

import msgspec

from fairlead_gateway.supervisor.management.shared_response import SharedResponse
from fairlead_gateway.supervisor.management.status_page import load_page
from fairlead_gateway.supervisor.management.view import GatewayView
from fairlead_gateway.telemetry.exposition import CONTENT_TYPE


class ProbeResponse(NamedTuple):
    """An answer; the first of its headers is the content type."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Probes:
    """The handlers of the open paths, which need no token."""

    def __init__(self, view: GatewayView) -> None:
        self._view = view
        self._readyz = SharedResponse(self._compute_readyz, view.clock.now)
        self._metrics = SharedResponse(partial(self._compute_metrics, shows_tenants=False), view.clock.now)
        self._tenant_metrics = SharedResponse(partial(self._compute_metrics, shows_tenants=True), view.clock.now)
        self.handlers = {"/": self.status_page, "/readyz": self.readyz, "/metrics": self.metrics}

    async def status_page(self) -> ProbeResponse:
        """Returns the page, whose script fetches its data from the API."""
        page, policy = load_page()
        headers = (("content-type", "text/html; charset=utf-8"), ("content-security-policy", policy))
        return ProbeResponse(200, headers, page)

    async def readyz(self) -> ProbeResponse:
        """Returns 200 while the gateway answers client requests, else 503."""
        return await self._readyz.get()

    async def metrics(self) -> ProbeResponse:
        """Returns Prometheus text without the series of tenants."""
        return await self._metrics.get()

    async def tenant_metrics(self) -> ProbeResponse:
        """Returns Prometheus text with the series of tenants, for who may read their data."""
        return await self._tenant_metrics.get()

    async def _compute_readyz(self) -> ProbeResponse:
        look = await self._view.status()
        body = msgspec.json.encode({"ready": look.ready, "notes": look.warnings})
        return ProbeResponse(200 if look.ready else 503, (("content-type", "application/json"),), body)

    async def _compute_metrics(self, *, shows_tenants: bool) -> ProbeResponse:
        """Returns Prometheus text; yields to the event loop after each piece."""
        view = self._view
        pieces: list[bytes] = []
        look, telemetry = await view.status(), await view.counters(windows=False)
        telemetry.loop_lag, telemetry.queued = look.lag, look.queued
        telemetry.ejection_seconds = {name: report.seconds for name, report in look.ejections.items()}
        now = view.clock.now()
        for piece in telemetry.render_chunks(view.fleet(), look.loads, now, shows_tenants=shows_tenants):
            pieces.append(piece)
            await asyncio.sleep(0)
        return ProbeResponse(200, (("content-type", CONTENT_TYPE),), b"".join(pieces))
