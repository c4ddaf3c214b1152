"""Single requests over connections that are kept: HTTP/1.1, one request at a time on each, over TLS or not.

A general client spends several times what a request to the API server needs on what is not needed here: redirections, cookies,
proxies, encodings, a stream and a timer's context for each answer. This one writes the head as one text, lets llhttp (httptools, as
in the gateway) take the answer apart, and wakes the caller once, when all of it is there. Watches, whose answers have no end, are
not its business (``fairlead.kube.feed``).

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
_HEAD_BYTES = 65_536
"""Of an answer before its body; the API server sends less than one thousand."""
_PIECE_BYTES = 262_144
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\U0010ffff]")
_NO_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PORTS = {"http": 80, "https": 443}
Headers = Sequence[tuple[str, str]]
"""Names and values."""


class Unsent(OSError):
    """Raised when there is no connection: the request has not been sent. ``__cause__`` says why."""


@dataclass(slots=True)
class Ask:
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
        if _UNSAFE.search(target):
            raise BadInput(f"{target!r} is no target of a request", field="path")
        return target


class Reply:
    """An answer. ``cut``: the body has more bytes than were asked for."""

    __slots__ = ("_headers", "body", "cut", "status")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, cut: bool) -> None:
        self.status = status
        self.body = body
        self.cut = cut
        self._headers = headers

    def header(self, name: str) -> str:
        """The first header of that name (in small letters); empty where there is none."""
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self._headers if key.lower() == wanted), "")


class Wire:
    """The connections to ``server`` (``https://host:port/path``). ``tls`` gives the present context, True where there is none.

    ``server_name`` is whom the certificate must be for, where that is not the host.
    """

    def __init__(
        self, server: str, tls: Callable[[], ssl.SSLContext | bool], server_name: str | None, connect_seconds: float
    ) -> None:
        parts = urlsplit(server)
        self._host = parts.hostname or ""
        self._port = parts.port or _PORTS[parts.scheme]
        self._named = parts.netloc.rpartition("@")[2]
        self._path = parts.path.rstrip("/")
        self._tls = tls
        self._server_name = server_name
        self._connect_seconds = connect_seconds
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        self._known: tuple[Headers, str] = ((), "")

    @property
    def connections(self) -> int:
        """How many are open, used or kept."""
        return len(self._all)

    async def ask(self, ask: Ask, headers: Headers, seconds: float, most: int, most_refused: int) -> Reply:
        """The answer; of its body at most ``most`` bytes, ``most_refused`` of a refusal (a status from 300 on).

        Raises Unsent, another OSError when the connection breaks, TimeoutError after ``seconds``.
        """
        head, context, loop = self._head(ask, headers), self._tls(), asyncio.get_running_loop()
        until, wanted = loop.time() + seconds, (most, most_refused)
        kept = self._kept(context)
        if kept is not None:
            try:
                return await self._exchanged(kept, head, ask.body or b"", until, wanted)
            except OSError:
                if kept.heard or kept.timed_out or not ask.repeatable:
                    raise
        made = await self._connected(context, until - loop.time())
        return await self._exchanged(made, head, ask.body or b"", until, wanted)

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

    def _head(self, ask: Ask, headers: Headers) -> bytes:
        if self._known[0] != headers:
            for name, value in headers:
                if _NO_VALUE.search(value):
                    raise BadInput("holds a control character, which no header may", field=name)
            self._known = (headers, "".join(f"{name}: {value}\r\n" for name, value in headers))
        sized = "" if ask.body is None else f"Content-Type: {ask.content}\r\nContent-Length: {len(ask.body)}\r\n"
        host = ask.host or self._named
        return f"{ask.method} {self._path}{ask.target} HTTP/1.1\r\nHost: {host}\r\n{self._known[1]}{sized}\r\n".encode()

    def _kept(self, context: ssl.SSLContext | bool) -> "_Connection | None":
        """The one that was used last, of those that are still good."""
        while self._idle:
            found = self._idle.pop()
            if not found.lost and found.context is context:
                return found
            found.abort()
        return None

    async def _connected(self, context: ssl.SSLContext | bool, seconds: float) -> "_Connection":
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
            raise Unsent(f"cannot connect to {self._named}: {words}") from error
        self._all.add(made)
        if self._closed:
            made.abort()
            raise Unsent(f"the client of {self._named} is closed")
        return made

    async def _exchanged(
        self, connection: "_Connection", head: bytes, body: bytes, until: float, wanted: tuple[int, int]
    ) -> Reply:
        loop = asyncio.get_running_loop()
        timer = loop.call_at(until, connection.expire)
        try:
            waiter = connection.begin(loop, wanted)
            if len(body) <= _PIECE_BYTES:
                connection.write(head + body)
            else:  # in pieces, so that other connections get their turn
                connection.write(head)
                for start in range(0, len(body), _PIECE_BYTES):
                    connection.write(body[start : start + _PIECE_BYTES])
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
                self._sweep = loop.call_later(IDLE_SECONDS, self._swept)
        else:
            connection.abort()
        return reply

    def _swept(self) -> None:
        """Close what has waited too long."""
        loop = asyncio.get_running_loop()
        oldest, kept = loop.time() - IDLE_SECONDS, []
        for one in self._idle:
            if one.lost or one.idle_since <= oldest:
                one.abort()
            else:
                kept.append(one)
        self._idle = kept
        self._sweep = loop.call_later(IDLE_SECONDS, self._swept) if kept else None


class _Connection(asyncio.Protocol):
    """One connection, and the answer that is being read on it. ``heard``: its first byte has come."""

    def __init__(self, context: ssl.SSLContext | bool, gone: Callable[["_Connection"], None]) -> None:
        self.context = context
        self.lost = self.heard = self.timed_out = self.reusable = False
        self.idle_since = 0.0
        self._gone = gone
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Reply] | None = None
        self._most = self._most_refused = self._size = self._early = self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []

    def begin(self, loop: asyncio.AbstractEventLoop, wanted: tuple[int, int]) -> asyncio.Future[Reply]:
        """What will be the answer to what is written next. ``wanted``: most bytes of its body, and of that of a refusal."""
        self._most, self._most_refused = wanted
        self.heard = self.reusable = False
        self._size = self._early = self._status = 0
        self._headers, self._parts = [], []
        self._waiter = waiter = loop.create_future()
        if self.lost:
            self._fail(ConnectionResetError("the connection is closed"))
        return waiter

    def write(self, data: bytes) -> None:
        """Send it, unless the connection is lost, which the waiter hears of."""
        if self._transport is not None and not self.lost:
            self._transport.write(data)

    def expire(self) -> None:
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
        self.heard = True
        if not self._status:
            self._early += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(ConnectionError(f"the answer is no HTTP: {error}"))
        if not self._status and self._early > _HEAD_BYTES:
            self._fail(ConnectionError(f"the head of the answer has more than {_HEAD_BYTES} bytes"))

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed, by whomever. An answer of which nothing says how long it is ends so."""
        self.lost = True
        self._gone(self)
        if not self._closed.done():
            self._closed.set_result(None)
        if self._status and self._endless() and error is None:
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
            self._most = self._most if status < 300 else self._most_refused

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._most:
            self._finish(cut=True)

    def on_message_complete(self) -> None:
        """All of it is there."""
        if self._status:
            self.reusable = self._waiter is not None and self._parser.should_keep_alive()
            self._finish(cut=False)
        else:
            self._headers = []

    def _endless(self) -> bool:
        return not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._headers)

    def _finish(self, *, cut: bool) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        waiter.set_result(Reply(self._status, self._headers, body[: self._most] if cut else body, cut))

    def _fail(self, error: Exception) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
