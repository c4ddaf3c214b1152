"""The beginning of a watch: an answer without an end, by aiohttp, with a connection for itself.

Watches are few and live for minutes, so that what opening one costs does not matter; single requests go by
``fairlead.kube.transport.http_transport``.
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
"""What a connection that breaks, or never comes about, raises here."""


@dataclass(frozen=True, slots=True)
class WatchStream:
    """An answer that has begun; leave its ``async with`` to end it."""

    response: aiohttp.ClientResponse

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abort()

    @property
    def status(self) -> int:
        """Of HTTP."""
        return self.response.status

    def header(self, name: str) -> str:
        """Empty where there is none."""
        return self.response.headers.get(name, "")

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        return self.response.content.iter_any()

    async def read_prefix(self, max_bytes: int) -> bytes:
        """At most so many bytes of the body."""
        parts, size = [], 0
        async for data in self.iter_bytes():
            parts.append(data)
            size += len(data)
            if size > max_bytes:
                self._abort()
                break
        return b"".join(parts)[:max_bytes]

    def _abort(self) -> None:
        """Of an answer that was not read to its end the connection is cut: a polite end of TLS waits for the other side, and one that
        the loop does not live to see stays open."""
        connection = self.response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self.response.release()


class WatchTransport:
    """Opens watches at ``server``. ``server_name`` is whom the certificate must be for, where that is not the host."""

    def __init__(
        self, server: str, credentials: ClusterCredentials, server_name: str | None, connect_seconds: float
    ) -> None:
        self._server = server
        self._credentials = credentials
        self._server_name = server_name
        self._connect_seconds = connect_seconds
        self._session: aiohttp.ClientSession | None = None

    async def open(self, target: str, headers: Headers) -> WatchStream:
        """The beginning of the answer to a GET of ``target`` (path and query, escaped). Raises what is ``BROKEN``."""
        try:
            return WatchStream(
                await self._get_session().request(
                    "GET",
                    URL(f"{self._server}{target}", encoded=True),
                    headers=list(headers),
                    ssl=self._credentials.tls_context(),
                    server_hostname=self._server_name,
                    allow_redirects=False,  # a redirection would carry our token elsewhere
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_seconds),
                )
            )
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError):
            self._credentials.invalidate()  # the authority may have been replaced
            raise

    async def close(self) -> None:
        """End all of them."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _get_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Every watch holds a connection for itself, one a kind and namespace; the usual 100 may not be enough.
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session
