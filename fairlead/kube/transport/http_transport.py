"""Single requests over connections that are kept: HTTP/1.1, one request at a time on each, over TLS or not.

A general client spends several times what a request to the API server needs on what is not needed here: redirections, cookies,
proxies, encodings, a stream and a timer's context for each answer. This one writes the head as one text, lets llhttp (httptools, as
in the gateway) take the answer apart, and wakes the caller once, when all of it is there. Watches, whose answers have no end, are
not its business (``fairlead.kube.transport.watch_stream``).

What it promises its caller, who decides what may be sent again:

- ``Unsent``: no connection came about, so that nothing was asked. Any other OSError or TimeoutError may come after the API server has
  done what it was asked.
- A connection that was kept may have been closed by the other end meanwhile. Where that shows before the first byte of an answer, and
  the request may be repeated, it is sent once more on a new connection; else the caller hears of it.
- A connection whose answer was not read to its end is never used again. One made with other certificates than the present ones is
  not either.
"""

import asyncio
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlencode, urlsplit

import httptools

from fairlead.errors import BadInput

IDLE_SECONDS = 15.0
"""Connections that wait longer are closed: load balancers forget them without a word."""
_MAX_HEAD_BYTES = 65_536
"""Of an answer before its body; the API server sends less than one thousand."""
_WRITE_CHUNK_BYTES = 262_144
_UNSAFE_TARGET = re.compile(r"[\x00-\x20\x7f-\U0010ffff]")
_UNSAFE_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_DEFAULT_PORTS = {"http": 80, "https": 443}
Headers = Sequence[tuple[str, str]]
"""Names and values."""


class NotSent(OSError):
    """Raised when there is no connection: the request has not been sent. ``__cause__`` says why."""


@dataclass(slots=True)
class HttpRequest:
    """One request, as often as it is sent. ``path`` is escaped. ``repeatable``: sending it twice is the same as once.

    ``host`` is what the header of that name says, where that is not the server.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    content: str = "application/json"
    repeatable: bool = True
    host: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def target(self) -> str:
        """Path and query. Raises BadInput for what is none."""
        target = f"{self.path}?{urlencode(self.query)}" if self.query else self.path
        if _UNSAFE_TARGET.search(target):
            raise BadInput(f"{target!r} is no target of a request", field="path")
        return target


class HttpResponse:
    """An answer. ``cut``: the body has more bytes than were asked for."""

    __slots__ = ("_headers", "body", "status", "truncated")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, truncated: bool) -> None:
        self.status = status
        self.body = body
        self.truncated = truncated
        self._headers = headers

    def header(self, name: str) -> str:
        """The first header of that name (in small letters); empty where there is none."""
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self._headers if key.lower() == wanted), "")


class HttpTransport:
    """The connections to ``server`` (``https://host:port/path``). ``tls`` gives the present context, True where there is none.

    ``server_name`` is whom the certificate must be for, where that is not the host.
    """

    def __init__(
        self, server: str, tls: Callable[[], ssl.SSLContext | bool], server_name: str | None, connect_seconds: float
    ) -> None:
        parts = urlsplit(server)
        self._host = parts.hostname or ""
        self._port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self._authority = parts.netloc.rpartition("@")[2]
        self._path = parts.path.rstrip("/")
        self._tls = tls
        self._server_name = server_name
        self._connect_seconds = connect_seconds
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        self._header_cache: tuple[Headers, str] = ((), "")

    @property
    def connection_count(self) -> int:
        """How many are open, used or kept."""
        return len(self._all)

    async def send(
        self, request: HttpRequest, headers: Headers, seconds: float, max_bytes: int, max_error_bytes: int
    ) -> HttpResponse:
        """The answer; of its body at most ``most`` bytes, ``most_refused`` of a refusal (a status from 300 on).

        Raises Unsent, another OSError when the connection breaks, TimeoutError after ``seconds``.
        """
        head, context, loop = self._format_head(request, headers), self._tls(), asyncio.get_running_loop()
        until, wanted = loop.time() + seconds, (max_bytes, max_error_bytes)
        kept = self._take_idle(context)
        if kept is not None:
            try:
                return await self._exchange(kept, head, request.body or b"", until, wanted)
            except OSError:
                if kept.response_started or kept.timed_out or not request.repeatable:
                    raise
        made = await self._connect(context, until - loop.time())
        return await self._exchange(made, head, request.body or b"", until, wanted)

    async def close(self) -> None:
        """End all connections; one that is being made ends as soon as it is."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._idle.clear()
        gone = [one.abort() for one in tuple(self._all)]
        if gone:
            await asyncio.wait(gone, timeout=1.0)

    def _format_head(self, request: HttpRequest, headers: Headers) -> bytes:
        if self._header_cache[0] != headers:
            for name, value in headers:
                if _UNSAFE_VALUE.search(value):
                    raise BadInput("holds a control character, which no header may", field=name)
            self._header_cache = (headers, "".join(f"{name}: {value}\r\n" for name, value in headers))
        sized = (
            ""
            if request.body is None
            else f"Content-Type: {request.content}\r\nContent-Length: {len(request.body)}\r\n"
        )
        host = request.host or self._authority
        line = f"{request.method} {self._path}{request.target} HTTP/1.1"
        return f"{line}\r\nHost: {host}\r\n{self._header_cache[1]}{sized}\r\n".encode()

    def _take_idle(self, context: ssl.SSLContext | bool) -> "_Connection | None":
        """The one that was used last, of those that are still good."""
        while self._idle:
            found = self._idle.pop()
            if not found.lost and found.context is context:
                return found
            found.abort()
        return None

    async def _connect(self, context: ssl.SSLContext | bool, seconds: float) -> "_Connection":
        loop = asyncio.get_running_loop()
        secure = context if isinstance(context, ssl.SSLContext) else None
        name = (self._server_name or self._host) if secure is not None else None
        try:
            async with asyncio.timeout(min(seconds, self._connect_seconds)):
                _, made = await loop.create_connection(
                    lambda: _Connection(context, self._all.discard),
                    self._host,
                    self._port,
                    ssl=secure,
                    server_hostname=name,
                )
        except OSError as error:
            words = str(error) or type(error).__name__
            raise NotSent(f"cannot connect to {self._authority}: {words}") from error
        self._all.add(made)
        if self._closed:
            made.abort()
            raise NotSent(f"the client of {self._authority} is closed")
        return made

    async def _exchange(
        self, connection: "_Connection", head: bytes, body: bytes, until: float, wanted: tuple[int, int]
    ) -> HttpResponse:
        loop = asyncio.get_running_loop()
        timer = loop.call_at(until, connection.on_timeout)
        try:
            waiter = connection.start_request(loop, wanted)
            if len(body) <= _WRITE_CHUNK_BYTES:
                connection.write(head + body)
            else:  # in pieces, so that other connections get their turn
                connection.write(head)
                for start in range(0, len(body), _WRITE_CHUNK_BYTES):
                    connection.write(body[start : start + _WRITE_CHUNK_BYTES])
                    await asyncio.sleep(0)
            reply = await waiter
        except BaseException:
            connection.abort()
            raise
        finally:
            timer.cancel()
        if connection.reusable:
            connection.idle_since = loop.time()
            self._idle.append(connection)
            if self._sweep is None:
                self._sweep = loop.call_later(IDLE_SECONDS, self._close_expired)
        else:
            connection.abort()
        return reply

    def _close_expired(self) -> None:
        """Close what has waited too long."""
        loop = asyncio.get_running_loop()
        oldest, kept = loop.time() - IDLE_SECONDS, []
        for one in self._idle:
            if one.lost or one.idle_since <= oldest:
                one.abort()
            else:
                kept.append(one)
        self._idle = kept
        self._sweep = loop.call_later(IDLE_SECONDS, self._close_expired) if kept else None


class _Connection(asyncio.Protocol):
    """One connection, and the answer that is being read on it. ``heard``: its first byte has come."""

    def __init__(self, context: ssl.SSLContext | bool, gone: Callable[["_Connection"], None]) -> None:
        self.context = context
        self.lost = self.response_started = self.timed_out = self.reusable = False
        self.idle_since = 0.0
        self._on_closed = gone
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[HttpResponse] | None = None
        self._max_bytes = self._max_error_bytes = self._size = self._head_size = self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []

    def start_request(self, loop: asyncio.AbstractEventLoop, wanted: tuple[int, int]) -> asyncio.Future[HttpResponse]:
        """What will be the answer to what is written next. ``wanted``: most bytes of its body, and of that of a refusal."""
        self._max_bytes, self._max_error_bytes = wanted
        self.response_started = self.reusable = False
        self._size = self._head_size = self._status = 0
        self._headers, self._parts = [], []
        self._waiter = waiter = loop.create_future()
        if self.lost:
            self._fail(ConnectionResetError("the connection is closed"))
        return waiter

    def write(self, data: bytes) -> None:
        """Send it, unless the connection is lost, which the waiter hears of."""
        if self._transport is not None and not self.lost:
            self._transport.write(data)

    def on_timeout(self) -> None:
        """The time for the answer is over."""
        self.timed_out = True
        self._fail(TimeoutError())

    def abort(self) -> asyncio.Future[None]:
        """Close it at once; done when it is closed."""
        if self._transport is not None and not self.lost:
            self._transport.abort()
        return self._closed

    # --- as asyncio calls it ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        if self._waiter is None:  # nobody asked
            self.abort()
            return
        self.response_started = True
        if not self._status:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(ConnectionError(f"the answer is no HTTP: {error}"))
        if not self._status and self._head_size > _MAX_HEAD_BYTES:
            self._fail(ConnectionError(f"the head of the answer has more than {_MAX_HEAD_BYTES} bytes"))

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed, by whomever. An answer of which nothing says how long it is ends so."""
        self.lost = True
        self._on_closed(self)
        if not self._closed.done():
            self._closed.set_result(None)
        if self._status and self._is_close_delimited() and error is None:
            self._finish(cut=False)
        else:
            self._fail(error if isinstance(error, OSError) else ConnectionResetError("Server disconnected"))

    # --- as llhttp calls it -------------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The body follows, unless this only says that the answer will."""
        status = self._parser.get_status_code()
        if status >= 200:
            self._status = status
            self._max_bytes = self._max_bytes if status < 300 else self._max_error_bytes

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._max_bytes:
            self._finish(cut=True)

    def on_message_complete(self) -> None:
        """All of it is there."""
        if self._status:
            self.reusable = self._waiter is not None and self._parser.should_keep_alive()
            self._finish(cut=False)
        else:
            self._headers = []

    def _is_close_delimited(self) -> bool:
        return not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._headers)

    def _finish(self, *, cut: bool) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        waiter.set_result(HttpResponse(self._status, self._headers, body[: self._max_bytes] if cut else body, cut))

    def _fail(self, error: Exception) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
