"""A real HTTP server with predefined responses on a free loopback port, for tests of clients."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


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
                """Sends the prepared answer."""
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
        """Refuses all connections from now on."""
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
