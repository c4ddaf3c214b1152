"""One client connection: bytes → Request → Reply → bytes, on httptools, one request answered at a time.

It behaves as uvicorn does: requests that arrive while one is being answered wait their turn, an idle connection is closed after the
keep-alive time, a client that goes away is told to whoever is answering, and nonsense gets a plain 400.
"""

import asyncio
import sys
import traceback
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import httptools

from fairlead_sim.server.heads import JSON, LAST_CHUNK, Heads, chunk
from fairlead_sim.server.problems import ApiProblem, Broken, NotServed, Vanish

NOT_HTTP = b"Invalid HTTP request received."
HEADER_BYTES = 65_536
READ_AHEAD = 16  # requests of one connection that wait; then reading pauses
TEXT = b"text/plain; charset=utf-8"


@dataclass(slots=True)
class Request:
    """A whole request; header names are lower case, the last of several equal ones counts."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    oversize: bool = False


class App(Protocol):
    """What answers requests; one per listening engine."""

    heads: Heads
    random: Random
    keep_alive_seconds: float
    body_bytes: int
    echo_request_ids: bool

    def opened(self, connection: "Connection") -> bool:
        """A connection came in; False = drop it at once."""
        ...

    def closed(self, connection: "Connection") -> None:
        """A connection is gone."""
        ...

    def handle(self, request: Request, reply: "Reply") -> None:
        """Answer now or later through ``reply``; an ApiProblem raised here becomes the answer."""
        ...


class Reply:
    """The answer to one request: either ``send`` once, or ``start``, ``write`` … and ``finish``.

    ``on_gone`` is called when the client leaves before the end. After that every method does nothing.
    """

    __slots__ = ("_close", "_connection", "_started", "anthropic", "before", "done", "on_gone", "on_sent", "request_id")

    def __init__(self, connection: "Connection", request_id: str, close: bool) -> None:
        self._connection: Connection | None = connection
        self._close = close
        self._started = False
        self.request_id = request_id
        self.before = b""  # header lines that stand ahead of the content length
        self.anthropic = False  # problems take the other provider's form
        self.done = False
        self.on_gone: Callable[[], None] | None = None
        self.on_sent: Callable[[int, int], None] | None = None  # told status and body bytes of a complete answer

    def send(self, status: int, body: bytes, content_type: bytes | None = JSON, *, bare: bool = False) -> None:
        """A whole answer in one write; a ``bare`` one lacks the headers that middleware adds."""
        if self.done or self._connection is None:
            return
        connection = self._connection
        head = connection.app.heads.whole(status, len(body), content_type, self.before, self._tail(bare))
        self._end(head + body, status, len(body))

    def start(self, content_type: bytes, first: bytes = b"") -> None:
        """The head of a stream, at once, as StreamingResponse does: long before the first token."""
        if self.done or self._connection is None:
            return
        self._started = True
        head = self._connection.app.heads.stream(200, content_type, self._tail(False))
        self._connection.write(head + first)

    def write(self, chunks: bytes) -> None:
        """Bytes that are already cut into HTTP chunks."""
        if not self.done and self._connection is not None:
            self._connection.write(chunks)

    def finish(self, chunks: bytes = b"") -> None:
        """The end of a stream."""
        if not self.done:
            self._end(chunks + LAST_CHUNK, 200, 0)

    def fail(self, problem: ApiProblem) -> None:
        """The answer for a problem: a plain one before the head, an event and ``[DONE]`` after it."""
        if self._started:
            self.finish(chunk(problem.event()) + chunk(b"data: [DONE]\n\n"))
        else:
            if isinstance(problem, NotServed) and problem.allow is not None:
                self.before += b"allow: %b\r\n" % problem.allow.encode()
            body = problem.anthropic_body() if self.anthropic else problem.body()
            self.send(problem.status, body, bare=isinstance(problem, Broken) and problem.bare)

    def last(self) -> None:
        """Close the connection after this answer."""
        if self._connection is not None:
            self._connection.close_after()

    def raw(self, data: bytes) -> None:
        """Bytes that are no HTTP (failure injection), then the end of the connection."""
        if self._connection is not None:
            self._connection.write(data)
            self._connection.close()

    def cut(self) -> None:
        """Drop the connection in the middle."""
        if self._connection is not None:
            self._connection.drop()

    def gone(self) -> None:
        """Called by the connection: the client left."""
        if self.done:
            return
        self.done = True
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
        self.done = True
        self.on_gone = None
        if self.on_sent is not None:
            self.on_sent(status, size)
        if connection is not None:
            connection.write(data)
            connection.answered()


class Connection(asyncio.Protocol):
    """The protocol object of one TCP connection."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._reply: Reply | None = None
        self._keep_alive = True
        self._idle: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._deaf = False
        self._reset()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        if not self.app.opened(self):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.app.closed(self)
        self._transport = None
        self._waiting.clear()
        self._rest(False)
        if self._reply is not None:
            self._reply.gone()
            self._reply = None

    def data_received(self, data: bytes) -> None:
        self._rest(False)
        if self._deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # uvicorn answers an upgrade it does not know as a plain request
        except httptools.HttpParserError:
            self._nonsense()

    def write(self, data: bytes) -> None:
        """Send; nothing happens once the connection is gone."""
        if self._transport is not None:
            self._transport.write(data)

    def answered(self) -> None:
        """The present request is done: take the next, wait for one, or close."""
        self._reply = None
        if not self._keep_alive:
            self.close()
        elif self._waiting:
            self._loop.call_soon(self._next)
        else:
            self._rest(True)

    def close_after(self) -> None:
        """Close after the present answer."""
        self._keep_alive = False

    def close_when_idle(self) -> None:
        """Shutdown: close now if nothing is being answered, else after the answer."""
        self._keep_alive = False
        if self._reply is None:
            self.close()

    def close(self) -> None:
        """Close after what is written has left."""
        if self._transport is not None:
            self._transport.close()

    def drop(self) -> None:
        """Close at once, unsent bytes are lost and the client sees a reset."""
        if self._transport is not None:
            self._transport.abort()

    def go_deaf(self) -> None:
        """Read and never answer: the hang of a stuck engine."""
        self._deaf = True

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._reply is not None

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._reset()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADER_BYTES:
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
        if self._deaf:
            return
        target = urlsplit(self._url.decode("latin-1"))
        request = Request(
            self._parser.get_method().decode("latin-1"),
            unquote(target.path),
            dict(parse_qsl(target.query, keep_blank_values=True)) if target.query else {},
            self._headers,
            b"".join(self._body),
            self._length > self.app.body_bytes,
        )
        close = not self._parser.should_keep_alive()
        if self._reply is None and not self._waiting:
            self._answer(request, close)
        else:
            self._waiting.append((request, close))
            if len(self._waiting) >= READ_AHEAD and self._transport is not None:
                self._transport.pause_reading()

    def _reset(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._length = 0
        self._header_bytes = 0

    def _next(self) -> None:
        if self._waiting and self._reply is None and self._transport is not None:
            self._answer(*self._waiting.popleft())
            if len(self._waiting) < READ_AHEAD and self._transport is not None:
                self._transport.resume_reading()

    def _answer(self, request: Request, close: bool) -> None:
        self._keep_alive = self._keep_alive and not close
        request_id = (
            request.headers.get("x-request-id") or uuid.UUID(int=self.app.random.getrandbits(128), version=4).hex
        )
        reply = Reply(self, request_id, request.headers.get("connection", "").lower() == "close")
        self._reply = reply
        if request.oversize:
            reply.send(413, b'{"detail":"There was an error parsing the body"}')
            return
        try:
            self.app.handle(request, reply)
        except ApiProblem as problem:
            reply.fail(problem)
        except Vanish:
            self.drop()
        except Exception:  # noqa: BLE001 - the boundary of a request: one bad request must not end the engine
            traceback.print_exc(file=sys.stderr)
            reply.fail(Broken("Internal server error", bare=True))

    def _nonsense(self) -> None:
        head = self.app.heads.opening(400).split(b"\r\n", 1)[0]
        self.write(
            b"%b\r\ncontent-type: %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (head, TEXT, len(NOT_HTTP), NOT_HTTP)
        )
        self.close()

    def _rest(self, begin: bool) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if begin and self._transport is not None:
            self._idle = self._loop.call_later(self.app.keep_alive_seconds, self.close)
