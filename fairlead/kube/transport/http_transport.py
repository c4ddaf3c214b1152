"""HTTP/1.1 transport for single requests over keep-alive connections, one at a time on each.

It writes the head as one text, parses responses with llhttp (httptools, as in the gateway), and
wakes the caller once, with the complete response. Watches use `watch_stream`.

Why: a general client spends several times the cost on redirects, cookies, proxies, encodings, and a
stream and a timer per response. None of these is needed here.

Guarantees for the caller, who decides about retries:

- `NotSent`: there was no connection, so that nothing was requested. After any other OSError or
  TimeoutError, the API server may have processed the request.
- The server may close an idle connection. If that happens before the first byte of the response,
  a repeatable request is sent once more on a new connection. Otherwise the caller gets the error.
- A connection is never reused after an incomplete response, nor after a change of the TLS context.
"""

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote, urlencode, urlsplit

import httptools

from fairlead.errors import BadInput

IDLE_SECONDS = 15.0
"""Connections idle for longer are closed: load balancers drop them silently."""
_MAX_HEAD_BYTES = 65_536
"""Maximum size of a response head. The API server sends less than one thousand bytes."""
_WRITE_CHUNK_BYTES = 262_144
_UNSAFE_TARGET = re.compile(r"[\x00-\x20\x7f-\U0010ffff]")
_UNSAFE_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_DEFAULT_PORTS = {"http": 80, "https": 443}
Headers = Sequence[tuple[str, str]]
"""Names and values."""


class NotSent(OSError):
    """Raised if there is no connection: the request was not sent. `__cause__` says why."""


@dataclass(slots=True)
class HttpRequest:
    """A request, which may be sent several times.

    path: escaped.
    repeatable: the request is idempotent.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    content: str = "application/json"
    repeatable: bool = True

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def target(self) -> str:
        """The request target: path and query. Raises BadInput if it is invalid."""
        target = f"{self.path}?{urlencode(self.query)}" if self.query else self.path
        if _UNSAFE_TARGET.search(target):
            raise BadInput(f"{target!r} is not a request target", field="path")
        return target


class HttpResponse:
    """A response. `truncated`: the body was longer than the maximum, and was cut."""

    __slots__ = ("_headers", "body", "status", "truncated")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, truncated: bool) -> None:
        self.status = status
        self.body = body
        self.truncated = truncated
        self._headers = headers

    def header(self, name: str) -> str:
        """Returns the first header of that lower-case name; empty if absent."""
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self._headers if key.lower() == wanted), "")


class HttpTransport:
    """The connections to `server` (`https://host:port/path`).

    tls: returns the current TLS context; True without TLS.
    server_name: expected name in the certificate, if it is not the host.
    proxy: URL of an HTTP proxy, which is asked for a tunnel.
    before_write: called right before a request that may change something is sent. What it raises
        ends the request.
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
        self.proxy: str | None = None
        self.before_write: Callable[[], None] = lambda: None
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        self._header_cache: tuple[Headers, str] = ((), "")

    @property
    def connection_count(self) -> int:
        return len(self._all)

    async def send(
        self, request: HttpRequest, headers: Headers, seconds: float, max_bytes: int, max_error_bytes: int
    ) -> HttpResponse:
        """Sends a request and returns the response, with at most `max_bytes` of its body.

        max_error_bytes: the maximum for responses of status 300 or more.
        Raises NotSent, another OSError if the connection breaks, TimeoutError after `seconds`, and
        what `before_write` raises.
        """
        head, context, loop = self._format_head(request, headers), self._tls(), asyncio.get_running_loop()
        until, wanted = loop.time() + seconds, (max_bytes, max_error_bytes)
        self._check_write(request)
        idle_connection = self._take_idle(context)
        if idle_connection is not None:
            try:
                return await self._exchange(idle_connection, head, request.body or b"", until, wanted)
            except OSError:
                if idle_connection.response_started or idle_connection.timed_out or not request.repeatable:
                    raise
        connection = await self._connect(context, until - loop.time())
        try:
            self._check_write(request)  # the process may have been suspended while it connected
        except BaseException:
            connection.abort()
            raise
        return await self._exchange(connection, head, request.body or b"", until, wanted)

    async def close(self) -> None:
        """Closes all connections; one that is being opened closes as soon as it is open."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._idle.clear()
        closing = [connection.abort() for connection in tuple(self._all)]
        if closing:
            await asyncio.wait(closing, timeout=1.0)

    def _check_write(self, request: HttpRequest) -> None:
        if request.method != "GET":
            self.before_write()

    def _format_head(self, request: HttpRequest, headers: Headers) -> bytes:
        if self._header_cache[0] != headers:
            for name, value in headers:
                if _UNSAFE_VALUE.search(value):
                    raise BadInput(f"the header {name} contains a control character", field=name)
            self._header_cache = (headers, "".join(f"{name}: {value}\r\n" for name, value in headers))
        sized = (
            ""
            if request.body is None
            else f"Content-Type: {request.content}\r\nContent-Length: {len(request.body)}\r\n"
        )
        line = f"{request.method} {self._path}{request.target} HTTP/1.1"
        return f"{line}\r\nHost: {self._authority}\r\n{self._header_cache[1]}{sized}\r\n".encode()

    def _take_idle(self, context: ssl.SSLContext | bool) -> "_Connection | None":
        """Returns the most recently used connection that is still usable; None if there is none."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost and connection.context is context:
                return connection
            connection.abort()
        return None

    async def _connect(self, context: ssl.SSLContext | bool, seconds: float) -> "_Connection":
        loop = asyncio.get_running_loop()
        secure = context if isinstance(context, ssl.SSLContext) else None
        name = (self._server_name or self._host) if secure is not None else None
        connection = _Connection(context, self._all.discard)
        try:
            async with asyncio.timeout(min(seconds, self._connect_seconds)):
                if self.proxy is not None:
                    await connection.open_tunnel(self.proxy, self._host, self._port, name)
                else:
                    address = (self._host, self._port)
                    await loop.create_connection(lambda: connection, *address, ssl=secure, server_hostname=name)
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            reason = f"{'' if self.proxy is None else 'through its proxy-url: '}{error or type(error).__name__}"
            raise NotSent(f"cannot connect to {self._authority}: {reason}") from error
        self._all.add(connection)
        if self._closed:
            connection.abort()
            raise NotSent(f"the client of {self._authority} is closed")
        return connection

    async def _exchange(
        self, connection: "_Connection", head: bytes, body: bytes, until: float, wanted: tuple[int, int]
    ) -> HttpResponse:
        loop = asyncio.get_running_loop()
        timer = loop.call_at(until, connection.on_timeout)
        try:
            waiter = connection.start_request(loop, wanted)
            if len(body) <= _WRITE_CHUNK_BYTES:
                connection.write(head + body)
            else:  # in chunks, so that other connections get loop time
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
        """Closes connections that were idle for too long."""
        loop = asyncio.get_running_loop()
        oldest, kept = loop.time() - IDLE_SECONDS, []
        for connection in self._idle:
            if connection.lost or connection.idle_since <= oldest:
                connection.abort()
            else:
                kept.append(connection)
        self._idle = kept
        self._sweep = loop.call_later(IDLE_SECONDS, self._close_expired) if kept else None


class _Connection(asyncio.Protocol):
    """A connection, and the response being read on it."""

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

    async def open_tunnel(self, proxy: str, host: str, port: int, name: str | None) -> None:
        """Opens the connection through an HTTP proxy. `name` is expected in the certificate."""
        parts, target = urlsplit(proxy), f"{f'[{host}]' if ':' in host else host}:{port}"
        proxy_port = parts.port or _DEFAULT_PORTS[parts.scheme]
        reader, writer = await asyncio.open_connection(parts.hostname, proxy_port, ssl=parts.scheme == "https" or None)
        self._tunnel = writer  # without a reference, it would close the transport
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
        login = f"Proxy-Authorization: Basic {b64encode(user).decode()}\r\n" if parts.username else ""
        try:
            writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n".encode())
            line = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0].decode("latin-1")
            if line.split(" ")[1:2] != ["200"]:
                raise ConnectionRefusedError(f"the proxy answered {line}")
            writer.transport.set_protocol(self)
            self._transport = cast(asyncio.Transport, writer.transport)
            if isinstance(self.context, ssl.SSLContext):
                start_tls = asyncio.get_running_loop().start_tls
                secure = await start_tls(self._transport, self, self.context, server_hostname=name)
                self._transport = cast(asyncio.Transport, secure)
        except BaseException:
            writer.transport.abort()
            raise

    def start_request(self, loop: asyncio.AbstractEventLoop, wanted: tuple[int, int]) -> asyncio.Future[HttpResponse]:
        """Returns a future for the response to the next request.

        wanted: maximum bytes of its body, and of the body of an error.
        """
        self._max_bytes, self._max_error_bytes = wanted
        self.response_started = self.reusable = False
        self._size = self._head_size = self._status = 0
        self._headers, self._parts = [], []
        self._waiter = waiter = loop.create_future()
        if self.lost:
            self._fail(ConnectionResetError("the connection is closed"))
        return waiter

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self.lost:
            self._transport.write(data)

    def on_timeout(self) -> None:
        self.timed_out = True
        self._fail(TimeoutError())

    def abort(self) -> asyncio.Future[None]:
        """Closes the connection at once. The future is done when it is closed."""
        if self._transport is not None and not self.lost:
            self._transport.abort()
        return self._closed

    # --- callbacks of asyncio --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with a part of the response."""
        if self._waiter is None:  # no request is waiting
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
        """Called by asyncio when the connection is closed. This ends a response without a stated
        length.
        """
        self.lost = True
        self._on_closed(self)
        if not self._closed.done():
            self._closed.set_result(None)
        if self._status and self._is_close_delimited() and error is None:
            self._finish(cut=False)
        else:
            self._fail(error if isinstance(error, OSError) else ConnectionResetError("Server disconnected"))

    # --- callbacks of llhttp ---------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Called by llhttp at the end of the headers. Informational responses are skipped."""
        status = self._parser.get_status_code()
        if status >= 200:
            self._status = status
            self._max_bytes = self._max_bytes if status < 300 else self._max_error_bytes

    def on_body(self, data: bytes) -> None:
        """Called by llhttp for each part of the body."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._max_bytes:
            self._finish(cut=True)

    def on_message_complete(self) -> None:
        """Called by llhttp at the end of the response."""
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
