"""One client connection: bytes in, one answer at a time, bytes out.

It behaves as uvicorn does. Pipelined requests wait for their turn. An idle connection closes after
the keep-alive time. A response is notified when its client disconnects. Invalid bytes get a plain
400.

Response heads, byte for byte in the order of uvicorn under vLLM.
"""

import asyncio
import sys
import traceback
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from random import Random
from typing import Protocol, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import httptools

from fairlead import http_access
from fairlead.runtime.clock import Clock
from fairlead_sim.http.errors import ApiError, DropConnection, ForeignPage, InternalError, RouteNotFound

JSON_TYPE = b"application/json"
EVENT_STREAM_TYPE = b"text/event-stream; charset=utf-8"

LAST_CHUNK = b"0\r\n\r\n"

INVALID_HTTP_BODY = b"Invalid HTTP request received."
MAX_HEADER_BYTES = 65_536
MAX_PIPELINED_REQUESTS = 16  # waiting requests of one connection; then reading pauses
TEXT_TYPE = b"text/plain; charset=utf-8"


class HeaderBuilder:
    """A builder of response heads; it rebuilds the dated status line once per second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = -1
        self._openings: dict[int, bytes] = {}
        self._date = b""

    def status_lines(self, status: int) -> bytes:
        """Returns the status line, ``date`` and ``server``."""
        second = int(self._clock.wall())
        if second != self._second:
            self._second = second
            self._openings.clear()
            self._date = formatdate(second, usegmt=True).encode()
        opening = self._openings.get(status)
        if opening is None:
            phrase = HTTPStatus(status).phrase.encode()
            opening = b"HTTP/1.1 %d %b\r\ndate: %b\r\nserver: uvicorn\r\n" % (status, phrase, self._date)
            self._openings[status] = opening
        return opening

    def response_head(self, status: int, length: int, content_type: bytes | None, before: bytes, tail: bytes) -> bytes:
        """Returns the head of a response of known length.

        - before: header lines ahead of the length.
        - tail: header lines behind the type.
        """
        kind = b"content-type: %b\r\n" % content_type if content_type is not None else b""
        return b"%b%bcontent-length: %d\r\n%b%b\r\n" % (self.status_lines(status), before, length, kind, tail)

    def stream_head(self, status: int, content_type: bytes, tail: bytes) -> bytes:
        """Returns the head of a chunked response."""
        return b"%bcontent-type: %b\r\n%btransfer-encoding: chunked\r\n\r\n" % (
            self.status_lines(status),
            content_type,
            tail,
        )


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(slots=True)
class HttpRequest:
    """A complete request. Header names are lower case; the last of several equal ones counts."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    is_oversize: bool = False


class RequestHandler(Protocol):
    """The interface of a request handler; each listening engine has one."""

    header_builder: HeaderBuilder
    random: Random
    keep_alive_seconds: float
    body_bytes: int
    echo_request_ids: bool

    def on_connection_made(self, connection: "ServerConnection") -> bool:
        """Returns False to drop the connection at once."""

    def on_connection_lost(self, connection: "ServerConnection") -> None:
        """Forgets the connection."""

    def handle(self, request: HttpRequest, writer: "ResponseWriter") -> None:
        """Answers now or later through ``writer``. An ApiError raised here becomes the answer."""


class ResponseWriter:
    """The writer of one response: ``send``, or ``start``, ``write`` … and ``finish``.

    on_gone: called if the client disconnects before the end; then all methods do nothing.
    """

    __slots__ = (
        "_close",
        "_connection",
        "_started",
        "extra_headers",
        "is_anthropic",
        "is_done",
        "on_gone",
        "on_sent",
        "request_id",
    )

    def __init__(self, connection: "ServerConnection | None", request_id: str, close: bool) -> None:
        self._connection = connection
        self._close = close
        self._started = False
        self.request_id = request_id
        self.extra_headers = b""  # header lines before the content length
        self.is_anthropic = False  # errors have Anthropic's form
        self.is_done = False
        self.on_gone: Callable[[], None] | None = None
        self.on_sent: Callable[[int, int], None] | None = None  # gets status and body bytes of a complete answer

    def send(self, status: int, body: bytes, content_type: bytes | None = JSON_TYPE, *, bare: bool = False) -> None:
        """Sends a complete response in one write.

        bare: leaves out the headers that middleware adds.
        """
        if self.is_done or self._connection is None:
            return
        connection = self._connection
        head = connection.app.header_builder.response_head(
            status, len(body), content_type, self.extra_headers, self._tail(bare)
        )
        self._end(head + body, status, len(body))

    def start(self, content_type: bytes, first: bytes = b"") -> None:
        """Sends the head of a stream at once, long before the first token, as StreamingResponse
        does.
        """
        if self.is_done or self._connection is None:
            return
        self._started = True
        head = self._connection.app.header_builder.stream_head(200, content_type, self._tail(False))
        self._connection.write(head + first)

    def write(self, chunks: bytes) -> None:
        """Sends bytes that are HTTP chunks already."""
        if not self.is_done and self._connection is not None:
            self._connection.write(chunks)

    def finish(self, chunks: bytes = b"") -> None:
        if not self.is_done:
            self._end(chunks + LAST_CHUNK, 200, 0)

    def fail(self, problem: ApiError) -> None:
        """Sends an error: a plain response before the head, an event after it."""
        if self._started and self.is_anthropic:
            self.finish(http_chunk(problem.anthropic_event()))
        elif self._started:
            self.finish(http_chunk(problem.event()) + http_chunk(b"data: [DONE]\n\n"))
        else:
            if isinstance(problem, RouteNotFound) and problem.allow is not None:
                self.extra_headers += b"allow: %b\r\n" % problem.allow.encode()
            body = problem.anthropic_body() if self.is_anthropic and problem.has_dialect else problem.body()
            self.send(problem.status, body, bare=isinstance(problem, InternalError) and problem.is_bare)

    def break_off(self) -> None:
        """Ends a stream without its last chunk, as an exception in a stream of vLLM does."""
        connection, self._connection = self._connection, None
        self.is_done = True
        self.on_gone = None
        if self.on_sent is not None:
            self.on_sent(200, 0)
        if connection is not None:
            connection.close()

    def close_after(self) -> None:
        if self._connection is not None:
            self._connection.close_after()

    def send_raw(self, data: bytes) -> None:
        """Sends bytes that are not HTTP and closes the connection (fault injection)."""
        if self._connection is not None:
            self._connection.write(data)
            self._connection.close()

    def drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.drop()

    def client_gone(self) -> None:
        """Notes that the client disconnected; called by the connection."""
        if self.is_done:
            return
        self.is_done = True
        self._connection = None
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()

    def _tail(self, bare: bool) -> bytes:
        tail = b"connection: close\r\n" if self._close else b""
        if bare or self._connection is None:
            return tail
        if self._connection.app.echo_request_ids:
            return b"vary: Origin\r\nx-request-id: %b\r\n%b" % (self.request_id.encode("latin-1"), tail)
        return b"vary: Origin\r\n" + tail

    def _end(self, data: bytes, status: int, size: int) -> None:
        connection, self._connection = self._connection, None
        self.is_done = True
        self.on_gone = None
        if self.on_sent is not None:
            self.on_sent(status, size)
        if connection is not None:
            connection.write(data)
            connection.on_response_sent()


class ServerConnection(asyncio.Protocol):
    """The protocol of one TCP connection."""

    def __init__(self, app: RequestHandler) -> None:
        self.app = app
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[HttpRequest, bool]] = deque()
        self._writer: ResponseWriter | None = None
        self._keep_alive = True
        self._idle_timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._never_answers = self._refuses_pages = False
        self._reset()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        self._refuses_pages = http_access.is_loopback_socket(self._transport)
        if not self.app.on_connection_made(self):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.app.on_connection_lost(self)
        self._transport = None
        self._waiting.clear()
        self._set_idle_timer(False)
        if self._writer is not None:
            self._writer.client_gone()
            self._writer = None

    def data_received(self, data: bytes) -> None:
        self._set_idle_timer(False)
        if self._never_answers:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # uvicorn answers an upgrade it does not know as a plain request
        except httptools.HttpParserError:
            self._reject_bytes()

    def write(self, data: bytes) -> None:
        """Sends bytes, unless the connection is closed."""
        if self._transport is not None:
            self._transport.write(data)

    def on_response_sent(self) -> None:
        """Answers the next request, waits for one, or closes."""
        self._writer = None
        if not self._keep_alive:
            self.close()
        elif self._waiting:
            self._loop.call_soon(self._answer_next)
        else:
            self._set_idle_timer(True)

    def close_after(self) -> None:
        self._keep_alive = False

    def close_when_idle(self) -> None:
        """Closes now if idle, else after the present response."""
        self._keep_alive = False
        if self._writer is None:
            self.close()

    def close(self) -> None:
        """Closes after all written bytes are sent."""
        if self._transport is not None:
            self._transport.close()

    def drop(self) -> None:
        """Resets the connection; unsent bytes are lost."""
        if self._transport is not None:
            self._transport.abort()

    def stop_answering(self) -> None:
        self._never_answers = True

    @property
    def is_busy(self) -> bool:
        return self._writer is not None

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._reset()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError("request head too large")
        self._headers[name.lower().decode("latin-1")] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._length += len(body)
        if self._length <= self.app.body_bytes:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._never_answers:
            return
        target = urlsplit(self._url.decode("latin-1"))
        request = HttpRequest(
            self._parser.get_method().decode("latin-1"),
            unquote(target.path),
            dict(parse_qsl(target.query, keep_blank_values=True)) if target.query else {},
            self._headers,
            b"".join(self._body),
            self._length > self.app.body_bytes,
        )
        close = not self._parser.should_keep_alive()
        if self._writer is None and not self._waiting:
            self._answer(request, close)
        else:
            self._waiting.append((request, close))
            if len(self._waiting) >= MAX_PIPELINED_REQUESTS and self._transport is not None:
                self._transport.pause_reading()

    def _reset(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._length = 0
        self._header_bytes = 0

    def _answer_next(self) -> None:
        if self._waiting and self._writer is None and self._transport is not None:
            self._answer(*self._waiting.popleft())
            if len(self._waiting) < MAX_PIPELINED_REQUESTS and self._transport is not None:
                self._transport.resume_reading()

    def _answer(self, request: HttpRequest, close: bool) -> None:
        self._keep_alive = self._keep_alive and not close
        request_id = (
            request.headers.get("x-request-id") or uuid.UUID(int=self.app.random.getrandbits(128), version=4).hex
        )
        reply = ResponseWriter(self, request_id, request.headers.get("connection", "").lower() == "close")
        self._writer = reply
        if request.is_oversize:
            reply.send(413, b'{"detail":"There was an error parsing the body"}')
            return
        if self._refuses_pages and http_access.is_foreign_page(request.headers.get):
            reply.fail(ForeignPage(http_access.FOREIGN_PAGE_MESSAGE))
            return
        try:
            self.app.handle(request, reply)
        except ApiError as problem:
            reply.fail(problem)
        except DropConnection:
            self.drop()
        except Exception:  # noqa: BLE001 - the boundary of a request: one bad request must not end the engine
            traceback.print_exc(file=sys.stderr)
            reply.fail(InternalError("Internal server error", bare=True))

    def _reject_bytes(self) -> None:
        head = self.app.header_builder.status_lines(400).split(b"\r\n", 1)[0]
        self.write(
            b"%b\r\ncontent-type: %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (head, TEXT_TYPE, len(INVALID_HTTP_BODY), INVALID_HTTP_BODY)
        )
        self.close()

    def _set_idle_timer(self, begin: bool) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if begin and self._transport is not None:
            self._idle_timer = self._loop.call_later(self.app.keep_alive_seconds, self.close)
