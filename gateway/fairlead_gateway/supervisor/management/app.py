"""The management app behind its access guard; it loads FastAPI at the first request to the API.

It runs in the supervisor. Probes and scrapers send requests all day; users of the API send them
only now and then.

Why: FastAPI and its dependencies take a third of the supervisor's memory.
"""

import asyncio
from collections.abc import Iterable

from fairlead_gateway.supervisor.management.access.access_guard import (
    METRICS_PATH,
    AccessGuard,
    App,
    OnAccess,
    Receive,
    Scope,
    Send,
)
from fairlead_gateway.supervisor.management.access.access_scope import SCOPE_KEY
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens
from fairlead_gateway.supervisor.management.probes import ProbeResponse, Probes
from fairlead_gateway.supervisor.management.view import GatewayView


def create_management_app(
    view: GatewayView,
    *,
    tokens: ManageTokens | None = None,
    hosts: Iterable[str] = (),
    on_access: OnAccess | None = None,
) -> AccessGuard:
    """Returns the ASGI app, behind its guard.

    tokens: guard everything but the open paths. Without any, only this machine is answered.
    hosts: DNS names under which clients reach it.
    on_access: called after each request that needed a token.
    """
    return AccessGuard(_PathDispatcher(view), hosts=tuple(hosts), tokens=tokens, on_access=on_access)


class _PathDispatcher:
    """An ASGI app that answers the open paths itself and passes all others to the API."""

    def __init__(self, view: GatewayView) -> None:
        self._view = view
        self._probes = Probes(view)
        self._loading: asyncio.Task[App] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = self._probes.handlers.get(scope["path"]) if scope["type"] == "http" else None
        access = scope.get(SCOPE_KEY)
        if access is not None and access.reads_all_tenants and scope["path"] == METRICS_PATH:
            plain = self._probes.tenant_metrics
        if plain is not None:
            await _send(send, await plain())
            return
        await (await self._load_api_once())(scope, receive, send)

    async def _load_api_once(self) -> App:
        """Returns the API. The first call loads it in a thread; concurrent calls wait for it."""
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
