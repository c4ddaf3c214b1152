"""The management app: guarded, small while nobody looks, a framework from the first question to the API on.

It runs in the helper process. Probes and scrapers ask all day, people and the command line now and then: FastAPI, with all that it
brings, is a third of the helper's memory and is loaded when they do.
"""

import asyncio
from collections.abc import Iterable

from fairlead_gateway.supervisor.management.access_guard import AccessGuard, App, Receive, Scope, Send
from fairlead_gateway.supervisor.management.probes import ProbeResponse, Probes
from fairlead_gateway.supervisor.management.view import GatewayView


def create_management_app(view: GatewayView, *, hosts: Iterable[str] = (), token: str | None = None) -> App:
    """The ASGI app; ``hosts`` are DNS names it is reached under, ``token`` (if any) guards ``/api``."""
    return AccessGuard(_PathDispatcher(view), hosts=tuple(hosts), token=token)


class _PathDispatcher:
    """The plain paths here, everything else by the API."""

    def __init__(self, view: GatewayView) -> None:
        self._view = view
        self._probes = Probes(view)
        self._loading: asyncio.Task[App] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        plain = self._probes.handlers.get(scope["path"]) if scope["type"] == "http" else None
        if plain is not None:
            await _send(send, await plain())
            return
        await (await self._load_api_once())(scope, receive, send)

    async def _load_api_once(self) -> App:
        """Loaded once, beside the loop; whoever asks meanwhile waits for the same."""
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = asyncio.get_running_loop().create_task(
                asyncio.to_thread(_load_api, self._view, self._probes)
            )
        return await asyncio.shield(self._loading)


def _load_api(view: GatewayView, probes: Probes) -> App:
    from fairlead_gateway.supervisor.management.api import create_api

    return create_api(view, probes)


async def _send(send: Send, response: ProbeResponse) -> None:
    length = (b"content-length", str(len(response.body)).encode())
    headers = [*((name.encode(), value.encode("latin-1")) for name, value in response.headers), length]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
