"""The management port as a server: our own connections, read as strictly as those of clients, on a socket that listens already.

A server of the framework's kind (uvicorn) would bring a command line, process supervision and its own logging along, three megabytes
of them.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
from collections.abc import Sequence

from fairlead.limits import Limits
from fairlead_gateway import quiet_log
from fairlead_gateway.errors import GatewayError, WrongMethod
from fairlead_gateway.head import Head
from fairlead_gateway.listen import Listener, Request
from fairlead_gateway.management.app import management_app
from fairlead_gateway.management.asgi import answer
from fairlead_gateway.management.guard import WHERE, App
from fairlead_gateway.management.view import View
from fairlead_gateway.ports import BACKLOG
from fairlead_gateway.reply import Reply

_log = logging.getLogger("fairlead.gateway")
_LEAVE_SECONDS = 1.0
_LOOK_SECONDS = 0.02


class Management:
    """Serves ``view``; ``token`` guards its API, which is reached under ``hosts`` too."""

    def __init__(
        self, view: View, private: socket.socket, *, limits: Limits, token: str | None, hosts: Sequence[str] = ()
    ) -> None:
        self._app = management_app(view, token=token, hosts=hosts)
        self._clock = view.clock
        self._limits = limits
        self._private = private
        self._listener: Listener | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answer from now on."""
        loop = asyncio.get_running_loop()
        numbers = itertools.count(1)
        desk = _Desk(self._app, self._private.getsockname()[:2])
        listener = self._listener = Listener(
            desk, clock=self._clock, limits=self._limits, loop=loop, new_id=lambda: f"manage-{next(numbers)}"
        )
        self._server = await loop.create_server(listener.protocol, sock=self._private, backlog=BACKLOG)

    async def stop(self) -> None:
        """Answer what is being asked, and no more."""
        if self._server is None or self._listener is None:
            self._private.close()
            return
        self._server.close()
        self._listener.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                while self._listener.busy():  # noqa: ASYNC110 - connections set no event
                    await asyncio.sleep(_LOOK_SECONDS)
        self._listener.close()


class _Desk:
    """Has each request answered by the app, in a task of its own that ends with its client."""

    def __init__(self, app: App, server: tuple[str, int]) -> None:
        self._app = app
        self._server = server

    def admit(self, head: Head) -> None:
        """Nothing that has a body is waited for, beside the question that is one. Raises WrongMethod."""
        if head.path == WHERE and head.method == "POST":
            return
        raise WrongMethod(
            "the management port only answers GET, without a body", hint="use GET", fields=(("allow", "GET"),)
        )

    def handle(self, request: Request, reply: Reply) -> None:
        """Begin an answer."""
        task = asyncio.get_running_loop().create_task(self._answered(request, reply))
        reply.gone = task.cancel

    def refused(self, error: GatewayError, reply: Reply) -> None:
        """Answer something that never became a request."""
        fields = "".join(f"{name}: {value}\r\n" for name, value in error.fields)
        reply.whole(error.status, fields, error.body(reply.request_id))

    async def _answered(self, request: Request, reply: Reply) -> None:
        try:
            await answer(self._app, request, reply, self._server)
        except Exception as error:  # noqa: BLE001 - whatever it is, its asker gets an answer, and the log a place to look at
            _log.error("%s on the management port\n%s", type(error).__name__, quiet_log.where(error))
            self.refused(GatewayError("a defect in the management port", hint="see the gateway's log"), reply)
