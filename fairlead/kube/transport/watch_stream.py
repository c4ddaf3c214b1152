"""Opens watches over aiohttp: endless responses, each with its own connection.

Single requests use `http_transport`.

Why: watches are few and live for minutes, so the cost of opening one does not matter.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from fairlead.kube.transport.credentials import ClusterCredentials
from fairlead.kube.transport.http_transport import Headers

CONNECTION_ERRORS = (aiohttp.ClientError, OSError, TimeoutError)
"""Exceptions of a connection that breaks or cannot be opened."""


@dataclass(frozen=True, slots=True)
class WatchStream:
    """An open response. Leaving its `async with` block closes it."""

    response: aiohttp.ClientResponse

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abort()

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str:
        """Returns a header; empty if absent."""
        return self.response.headers.get(name, "")

    def iter_bytes(self) -> AsyncIterator[bytes]:
        return self.response.content.iter_any()

    async def read_prefix(self, max_bytes: int) -> bytes:
        """Returns the first `max_bytes` of the body, or all if it is shorter."""
        parts, size = [], 0
        async for data in self.iter_bytes():
            parts.append(data)
            size += len(data)
            if size > max_bytes:
                self._abort()
                break
        return b"".join(parts)[:max_bytes]

    def _abort(self) -> None:
        """Aborts the connection.

        Why: a graceful end of TLS waits for the other side, and stays open if the loop stops
        before.
        """
        connection = self.response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self.response.release()


class WatchTransport:
    """A transport that opens watches at `server`.

    server_name: expected name in the certificate, if it is not the host.
    proxy: URL of an HTTP proxy in between.
    """

    def __init__(
        self, server: str, credentials: ClusterCredentials, server_name: str | None, connect_seconds: float
    ) -> None:
        self._server = server
        self._credentials = credentials
        self._server_name = server_name
        self._connect_seconds = connect_seconds
        self.proxy: str | None = None
        self._session: aiohttp.ClientSession | None = None

    async def open(self, target: str, headers: Headers) -> WatchStream:
        """Sends a GET of `target` (escaped path and query) and returns the open response.

        Raises one of `CONNECTION_ERRORS`.
        """
        try:
            return WatchStream(
                await self._get_session().request(
                    "GET",
                    URL(f"{self._server}{target}", encoded=True),
                    headers=list(headers),
                    ssl=self._credentials.tls_context(),
                    server_hostname=self._server_name,
                    allow_redirects=False,  # a redirect would send the token elsewhere
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_seconds),
                )
            )
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError):
            self._credentials.invalidate()  # the CA may have been replaced
            raise

    async def close(self) -> None:
        """Closes all watches."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _get_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Each watch (one per kind and namespace) has a connection: the default of 100 may be
            # too low.
            connector = aiohttp.TCPConnector(limit=0)
            jar = aiohttp.DummyCookieJar()
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=jar, proxy=self.proxy)
        return self._session
