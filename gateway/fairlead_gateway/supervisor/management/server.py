"""The HTTP server of the management port, on a socket that already listens.

It reads its connections as strictly as those of clients.

Why: uvicorn would add a command line, process supervision and logging of its own, 3 MB in all.

Bridge from our own HTTP connections to an ASGI app.

It passes one whole request and one whole answer: no streams, no lifespan, no upgrades.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from fairlead.limits import Limits
from fairlead.management_api import ErrorBodyOut, ErrorOut
from fairlead.runtime import nonblocking_log
from fairlead.runtime.event_loop import close_server
from fairlead.runtime.process_tuning import limit_kernel_unsent
from fairlead_gateway.errors import GatewayError, MethodNotAllowed
from fairlead_gateway.http.connection import connection_factory
from fairlead_gateway.http.listener import HttpRequest, Listener, ResponseWriter
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.http.sockets import LISTEN_BACKLOG
from fairlead_gateway.supervisor.management.access.access_guard import (
    REQUEST_ID_KEY,
    AccessGuard,
    App,
    Message,
    OnAccess,
    Scope,
    refusal_headers,
)
from fairlead_gateway.supervisor.management.access.access_scope import ROUTE_PREVIEW_PATH
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens
from fairlead_gateway.supervisor.management.app import create_management_app
from fairlead_gateway.supervisor.management.view import GatewayView

_UNKNOWN_ADDRESS = "0.0.0.0"
"""Replaces an unreadable address, which must not count as this machine's."""
_FRAMING_HEADERS = (b"content-type", b"content-length")

MANAGE_BODY_BYTES: Final = 1024 * 1024
"""Limit: a body on the management port without a token; with one, `body_bytes`."""
MANAGE_BODIES_BYTES: Final = 64 * 1024 * 1024
"""Limit: all requests of the management port together; then 503."""

_DRAIN_SECONDS = 1.0
_DRAIN_POLL_SECONDS = 0.02


async def serve_request(app: App, request: HttpRequest, response: ResponseWriter, server: tuple[str, int]) -> None:
    """Calls `app` and sends its answer once that is complete.

    server: address and port of the listening socket.
    """
    unread = [request.body]
    status = 500
    fields: list[tuple[bytes, bytes]] = []
    body = bytearray()

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await asyncio.get_running_loop().create_future()  # a disconnect cancels the task
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            fields.extend(message.get("headers", ()))
        else:
            body.extend(message.get("body", b""))

    scope = request_scope(request.head, response.client_address(), server)
    scope[REQUEST_ID_KEY] = response.request_id
    await app(scope, receive, send)
    kind = next((value for name, value in fields if name == b"content-type"), b"application/octet-stream")
    lines = b"".join(b"%b: %b\r\n" % (name, value) for name, value in fields if name not in _FRAMING_HEADERS)
    response.send(status, lines.decode("latin-1"), bytes(body), content_type=kind.decode("latin-1"))


def request_scope(head: RequestHead, client_address: str | None, server: tuple[str, int]) -> Scope:
    """Returns the ASGI scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1" if head.version == 11 else "1.0",
        "method": head.method,
        "scheme": "http",
        "path": head.path,
        "query_string": head.query,
        "root_path": "",
        "headers": head.fields,
        "client": (client_address or _UNKNOWN_ADDRESS, 0),
        "server": server,
    }


_log = logging.getLogger("fairlead.gateway")


class ManagementServer:
    """The server of the management app; `private` is its listening socket."""

    def __init__(
        self,
        view: GatewayView,
        private: socket.socket,
        *,
        limits: Limits,
        tokens: ManageTokens,
        hosts: Sequence[str] = (),
        on_access: OnAccess | None = None,
    ) -> None:
        self._app = create_management_app(view, tokens=tokens, hosts=hosts, on_access=on_access)
        self._clock = view.clock
        self._limits = dataclasses.replace(
            limits,
            body_bytes=limits.body_bytes if tokens.are_required else MANAGE_BODY_BYTES,
            bodies_bytes=MANAGE_BODIES_BYTES,
            unparsed_bytes=MANAGE_BODIES_BYTES,
        )
        self._private = private
        self._listener: Listener | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Starts to accept connections."""
        loop = asyncio.get_running_loop()
        numbers = itertools.count(1)
        app = _AsgiHandler(self._app, self._private.getsockname()[:2])
        listener = self._listener = Listener(
            app, clock=self._clock, limits=self._limits, loop=loop, create_request_id=lambda: f"manage-{next(numbers)}"
        )
        limit_kernel_unsent(self._private)
        self._server = await loop.create_server(
            connection_factory(listener), sock=self._private, backlog=LISTEN_BACKLOG
        )

    async def stop(self) -> None:
        """Stops accepting and waits up to a second for the requests in flight."""
        if self._server is None or self._listener is None:
            self._private.close()
            return
        await close_server(self._server)
        self._listener.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while self._listener.count_busy():  # noqa: ASYNC110 - connections set no event
                    await asyncio.sleep(_DRAIN_POLL_SECONDS)
        self._listener.close()


class AccessRefused(GatewayError):
    """Raised if the guard of the management port refuses a request by its head."""

    error_type = "invalid_request_error"
    code = "access_refused"

    def __init__(self, status: int, message: str, hint: str) -> None:
        super().__init__(message, hint=hint, headers=refusal_headers(status, hint))
        self.status = status


def _error_body(error: GatewayError) -> bytes:
    """Returns the body of an error, in the shape that the API describes."""
    return msgspec.json.encode(
        ErrorOut(ErrorBodyOut(str(error), error.error_type, error.param, error.code, error.hint))
    )


class _AsgiHandler:
    """A request handler that calls the app in one task per request; a disconnect cancels it."""

    def __init__(self, app: AccessGuard, server: tuple[str, int]) -> None:
        self._app = app
        self._server = server

    def admit_body(self, head: RequestHead, client_address: str | None) -> None:
        """Raises AccessRefused if the guard refuses the head, MethodNotAllowed for a body except
        that of the route preview.
        """
        refusal = self._app.refusal(request_scope(head, client_address, self._server))
        if refusal is not None:
            raise AccessRefused(*refusal)
        if head.path == ROUTE_PREVIEW_PATH and head.method == "POST":
            return
        raise MethodNotAllowed(
            "the management port answers only GET, without a body", hint="use GET", headers=(("allow", "GET"),)
        )

    def handle(self, request: HttpRequest, response: ResponseWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._respond(request, response))
        response.on_client_gone = task.cancel

    def on_rejected(self, error: GatewayError, response: ResponseWriter) -> None:
        fields = "".join(f"{name}: {value}\r\n" for name, value in error.headers)
        response.send(error.status, fields, _error_body(error))

    async def _respond(self, request: HttpRequest, response: ResponseWriter) -> None:
        try:
            await serve_request(self._app, request, response, self._server)
        except Exception as error:  # noqa: BLE001 - the client gets an answer, the log the traceback
            _log.error("%s on the management port\n%s", type(error).__name__, nonblocking_log.traceback_lines(error))
            self.on_rejected(
                GatewayError("internal error of the management port", hint="see the gateway's log"), response
            )
