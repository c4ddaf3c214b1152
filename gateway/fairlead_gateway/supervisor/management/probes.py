"""Answers for probes, scrapers and browsers, without the framework of the API.

A response that concurrent requests share, and whose computation takes a bounded share of time.

Why: the open paths need no token, and each response queries all workers. With 4,096 instances that
takes milliseconds of each worker. A flood of such requests would leave no time for clients.

The status page: one self-contained HTML document and its Content-Security-Policy.
"""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

from fairlead_gateway.supervisor.management.view import GatewayView
from fairlead_gateway.telemetry.metrics import CONTENT_TYPE

T = TypeVar("T")
BURST_SECONDS: Final = 1.0
TIME_SHARE: Final = 0.1
MAX_CHARGED_SECONDS: Final = 0.1


def load_page() -> tuple[bytes, str]:
    """Returns the page and its policy, which allows only its own script and style, and our API."""
    style, script = _read_part("page.css"), _read_part("page.js")
    page = _read_part("page.html").replace("@import page.css", style).replace("import page.js", script)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {_csp_hash(script)}; style-src {_csp_hash(style)}"
    )
    return page.encode(), policy


def _read_part(name: str) -> str:
    from importlib.resources import files

    return files("fairlead_gateway.supervisor.management").joinpath("static", name).read_text(encoding="utf-8")


def _csp_hash(block: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"


class SharedResponse(Generic[T]):
    """The response of one open path.

    Requests that come during a computation get its result. It ends when all of their clients have
    left. Computations may take `TIME_SHARE` of the time, and `BURST_SECONDS` at once. Beyond, the
    last response is sent again. A computation that takes longer than `MAX_CHARGED_SECONDS` waits
    for a worker rather than for a processor, so no more of it counts. Else one hung worker would
    make the responses of the next ten seconds old.

    now: monotonic seconds.
    """

    def __init__(self, compute: Callable[[], Awaitable[T]], now: Callable[[], float]) -> None:
        self._compute = compute
        self._now = now
        self._last: T | None = None
        self._running: asyncio.Task[T] | None = None
        self._waiting_count = 0
        self._left_seconds = BURST_SECONDS
        self._refilled_at = now()

    async def get(self) -> T:
        """Returns the response. Raises what its computation raises."""
        if self._running is None:
            if self._last is not None and self._refill() <= 0.0:
                return self._last
            self._running, self._waiting_count = asyncio.create_task(self._run()), 0
        running = self._running
        self._waiting_count += 1
        try:
            return await asyncio.shield(running)  # other requests wait for it too
        except asyncio.CancelledError:
            if self._running is running and self._waiting_count == 1:
                self._running = None
                running.cancel()
            raise
        finally:
            if self._running is running:
                self._waiting_count -= 1

    def _refill(self) -> float:
        now = self._now()
        gained = TIME_SHARE * max(0.0, now - self._refilled_at)
        self._left_seconds, self._refilled_at = min(BURST_SECONDS, self._left_seconds + gained), now
        return self._left_seconds

    async def _run(self) -> T:
        started_at = self._now()
        try:
            self._last = await self._compute()
            return self._last
        finally:
            if self._running is asyncio.current_task():
                self._running = None
            self._refill()
            self._left_seconds -= min(MAX_CHARGED_SECONDS, max(0.0, self._now() - started_at))


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
        return await self._readyz.get()

    async def metrics(self) -> ProbeResponse:
        return await self._metrics.get()

    async def tenant_metrics(self) -> ProbeResponse:
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
