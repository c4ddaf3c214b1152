"""A real HTTP server with predefined responses on a free loopback port, for tests of clients.

A TCP server of a test that leaves no connection open.

Why not `asyncio.start_server` alone: a handler that is cancelled before its first step never runs,
not even its `finally`, so that nothing closes its connection. The warning then appears in a later
test.
"""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from fairlead.runtime.event_loop import close_server

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_TURNS_TO_CLOSE = 3
"""Loop iterations until cancelled tasks have had their callbacks, and connections are closed."""


@dataclass(frozen=True, slots=True)
class CannedResponse:
    """A predefined response. Several `parts` are sent as chunks. `cut` closes before the end of the
    body.
    """

    parts: Sequence[bytes] = (b"",)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass(slots=True)
class ReceivedRequest:
    """A request as received."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class CannedServer:
    """A server with `responses` by path without query; other paths get 404. `requests` keeps every
    request.

    Its answers may come from a function instead, which threads of the server call.
    """

    def __init__(self, answers: Mapping[str, CannedResponse] | Callable[[ReceivedRequest], CannedResponse]) -> None:
        self.responses = {} if callable(answers) else dict(answers)
        self._answer = answers if callable(answers) else self._prepared
        self.requests: list[ReceivedRequest] = []
        canned = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                canned._respond(self)

            def do_POST(self) -> None:
                canned._respond(self)

            def log_message(self, format: str, *args: object) -> None:
                """Logs nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def stop_listening(self) -> None:
        self._server.server_close()

    def _prepared(self, request: ReceivedRequest) -> CannedResponse:
        return self.responses.get(request.path.partition("?")[0], CannedResponse((b"{}",), 404))

    def _respond(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("content-length", "0"))
        body = request.rfile.read(length)
        received = ReceivedRequest(request.command, request.path, dict(request.headers.items()), body)
        self.requests.append(received)
        answer = self._answer(received)
        request.close_connection = True
        request.send_response(answer.status)
        for name, value in answer.headers.items():
            request.send_header(name, value)
        request.send_header("transfer-encoding", "chunked")
        request.send_header("connection", "close")
        request.end_headers()
        for part in answer.parts:
            request.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if not answer.cut:
            request.wfile.write(b"0\r\n\r\n")


@asynccontextmanager
async def tcp_server(
    serve: Serve, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None, buffer_bytes: int = 65_536
) -> AsyncIterator[asyncio.Server]:
    """Listens on a free port. `serve` handles each connection.

    At the end the handlers that still run are cancelled, and all their connections are aborted.
    """
    handlers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(handle(reader, writer))
        handlers[task] = writer
        task.add_done_callback(forget)

    def forget(task: asyncio.Task[None]) -> None:
        writer = handlers.pop(task)
        if task.cancelled():
            writer.transport.abort()

    server = await asyncio.start_server(accept, host, 0, ssl=tls, limit=buffer_bytes)
    try:
        yield server
    finally:
        await close_server(server)
        running = list(handlers)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)
