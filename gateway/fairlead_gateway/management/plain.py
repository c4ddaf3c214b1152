"""What probes, scrapers and browsers ask of the management port: answered without the framework, so that it need not be loaded."""

import asyncio
from typing import NamedTuple

import msgspec

from fairlead_gateway.management.page import load_page
from fairlead_gateway.management.view import View
from fairlead_gateway.telemetry.exposition import CONTENT_TYPE


class Answer(NamedTuple):
    """``headers`` begin with the content type."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Plain:
    """The paths that need no token."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.paths = {"/": self.status_page, "/readyz": self.readyz, "/metrics": self.metrics}

    async def status_page(self) -> Answer:
        """The page, which asks the API for what it shows."""
        page, policy = load_page()
        headers = (("content-type", "text/html; charset=utf-8"), ("content-security-policy", policy))
        return Answer(200, headers, page)

    async def readyz(self) -> Answer:
        """200 while requests are answered, else 503."""
        look = await self._view.look()
        body = msgspec.json.encode({"ready": look.ready, "notes": look.notes})
        return Answer(200 if look.ready else 503, (("content-type", "application/json"),), body)

    async def metrics(self) -> Answer:
        """Prometheus text. The loop has its turn between two pieces."""
        view = self._view
        pieces: list[bytes] = []
        look, telemetry = await view.look(), await view.counted(windows=False)
        telemetry.lag, telemetry.waiting = look.lag, look.held
        for piece in telemetry.render_parts(view.fleet(), look.loads, view.clock.now()):
            pieces.append(piece)
            await asyncio.sleep(0)
        return Answer(200, (("content-type", CONTENT_TYPE),), b"".join(pieces))
