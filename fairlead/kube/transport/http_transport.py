"""Requests to the API server over aiohttp: single ones, and watches, whose responses do not end.

Guarantees for the caller, who decides about retries:

- `NotSent`: there was no connection, so that nothing was requested. After any other OSError or
  TimeoutError, the API server may have processed the request.
- A GET, PUT or DELETE that finds a kept connection closed is sent once more on a new one.
- A connection is never reused after an incomplete response, nor after a change of the TLS context.
"""

import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlencode, urlsplit

import aiohttp
from yarl import URL

from fairlead.errors import BadInput
from fairlead.kube.transport.credentials import ClusterCredentials

CONNECTION_ERRORS: Final = (aiohttp.ClientError, OSError, TimeoutError)
"""Exceptions of a connection that breaks or cannot be opened."""
_IDLE_SECONDS = 15.0
"""Connections idle for longer are closed: load balancers drop them silently."""
_MAX_BYTES_IN_ONE_WRITE = 1_048_576
_UNSAFE_TARGET = re.compile(r"[\x00-\x20\x7f-\U0010ffff]")
_UNSAFE_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
Headers = Sequence[tuple[str, str]]
"""Names and values."""


class NotSent(OSError):
    """Raised if there is no connection: the request was not sent. `__cause__` says why."""


@dataclass(slots=True)
class HttpRequest:
    """A request, which may be sent several times.

    path: escaped.
    repeatable: the request is idempotent.
    host: value of the Host header, if it is not the server.
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
        """The request target: path and query. Raises BadInput if it is invalid."""
        target = f"{self.path}?{urlencode(self.query)}" if self.query else self.path
        if _UNSAFE_TARGET.search(target):
            raise BadInput(f"{target!r} is not a request target", field="path")
        return target


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response. `truncated`: the body was longer than the maximum, and was cut."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool

    def header(self, name: str) -> str:
        """Returns a header; empty if absent."""
        return self.headers.get(name, "")


@dataclass(frozen=True, slots=True)
class OpenResponse:
    """A response whose body is still to come. Leaving its `async with` block closes it."""

    response: aiohttp.ClientResponse

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.response.status

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """Returns the parts of the body as they arrive."""
        return self.response.content.iter_any()

    async def read(self, max_bytes: int) -> HttpResponse:
        """Returns the response with at most `max_bytes` of its body."""
        parts, size = [], 0
        async for data in self.iter_bytes():
            parts.append(data)
            size += len(data)
            if size > max_bytes:
                self.abort()
                break
        return HttpResponse(self.status, self.response.headers, b"".join(parts)[:max_bytes], size > max_bytes)

    def abort(self) -> None:
        """Aborts the connection, unless the response is complete.

        Why: a graceful end of TLS waits for the other side, and stays open if the loop stops
        before.
        """
        connection = self.response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self.response.release()


class HttpTransport:
    """The connections to `server` (`https://host:port/path`).

    server_name: expected name in the certificate, if it is not the host.
    before_write: called right before a request that may change something is sent. What it raises,
        which is no OSError, ends the request.
    """

    def __init__(
        self, server: str, credentials: ClusterCredentials, server_name: str | None, connect_seconds: float
    ) -> None:
        self._server = server.rstrip("/")
        self._authority = urlsplit(server).netloc.rpartition("@")[2]
        self._credentials = credentials
        self._server_name = server_name
        self._connect_seconds = connect_seconds
        self.before_write: Callable[[], None] = lambda: None
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def send(
        self, request: HttpRequest, headers: Headers, seconds: float, max_bytes: int, max_error_bytes: int
    ) -> HttpResponse:
        """Sends a request and returns the response, with at most `max_bytes` of its body.

        max_error_bytes: the maximum for responses of status 300 or more.
        Raises NotSent, another OSError if the connection breaks, TimeoutError after `seconds`, and
        what `before_write` raises.
        """
        try:
            async with await self.open(request, headers, seconds) as response:
                return await response.read(max_bytes if response.status < 300 else max_error_bytes)
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error) or type(error).__name__) from error

    async def open(self, request: HttpRequest, headers: Headers, seconds: float | None = None) -> OpenResponse:
        """Sends a request and returns the open response, which ends after `seconds` at the latest.

        Raises one of `CONNECTION_ERRORS`, and what `before_write` raises.
        """
        for name, value in headers:
            if _UNSAFE_VALUE.search(value):
                raise BadInput(f"the header {name} contains a control character", field=name)
        own = [("Host", request.host)] if request.host else []
        body: bytes | BytesIO | None = request.body
        if request.body is not None:
            own.append(("Content-Type", request.content))
            if len(request.body) > _MAX_BYTES_IN_ONE_WRITE:  # in parts, so that other connections get loop time
                body = BytesIO(request.body)
        try:
            return OpenResponse(
                await self._get_session().request(
                    request.method,
                    URL(f"{self._server}{request.target}", encoded=True),
                    headers=[*headers, *own],
                    data=body,
                    ssl=self._credentials.tls_context(),
                    server_hostname=self._server_name,
                    allow_redirects=False,  # a redirect would send the token elsewhere
                    timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=self._connect_seconds),
                )
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if isinstance(error, ssl.SSLError):
                self._credentials.invalidate()  # the CA may have been replaced
            reason = str(error.__cause__) or type(error.__cause__).__name__
            raise NotSent(f"cannot connect to {self._authority}: {reason}") from error

    async def close(self) -> None:
        """Closes all connections, including watches."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    def _get_session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise NotSent(f"the client of {self._authority} is closed")
        if self._session is None:
            transport = self

            class CheckedRequest(aiohttp.ClientRequest):
                """Calls `before_write` once there is a connection, which may have taken long."""

                async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
                    if self.method != "GET":
                        transport.before_write()
                    return await super().send(conn)

            self._session = aiohttp.ClientSession(
                # Each watch has a connection: the default of 100 may be too low.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                request_class=CheckedRequest,
                auto_decompress=False,
            )
        return self._session
