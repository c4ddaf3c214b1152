"""The management app: guarded, small while nobody looks, a framework from the first question to the API on.

It runs in the helper process. Probes and scrapers ask all day, people and the command line now and then: FastAPI, with all that it
brings, is a third of the helper's memory and is loaded when they do.
"""

import asyncio
from collections.abc import Iterable

from fairlead_gateway.management.guard import App, Guard, Receive, Scope, Send
from fairlead_gateway.management.plain import Answer, Plain
from fairlead_gateway.management.view import View


def management_app(view: View, *, hosts: Iterable[str] = (), token: str | None = None) -> App:
    """The ASGI app; ``hosts`` are DNS names it is reached under, ``token`` (if any) guards ``/api``."""
    return Guard(_Front(view), hosts=tuple(hosts), token=token)


class _Front:
    """The plain paths here, everything else by the API."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._plain = Plain(view)
        self._loading: asyncio.Task[App] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        plain = self._plain.paths.get(scope["path"]) if scope["type"] == "http" else None
        if plain is not None:
            await _send(send, await plain())
            return
        await (await self._api())(scope, receive, send)

    async def _api(self) -> App:
        """Loaded once, beside the loop; whoever asks meanwhile waits for the same."""
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = asyncio.get_running_loop().create_task(asyncio.to_thread(_loaded, self._view, self._plain))
        return await asyncio.shield(self._loading)


def _loaded(view: View, plain: Plain) -> App:
    from fairlead_gateway.management.api import api

    return api(view, plain)


async def _send(send: Send, answer: Answer) -> None:
    length = (b"content-length", str(len(answer.body)).encode())
    headers = [*((name.encode(), value.encode("latin-1")) for name, value in answer.headers), length]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
