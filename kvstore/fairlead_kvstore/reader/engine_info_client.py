"""HTTP queries to engines for their event endpoints."""

from collections.abc import Awaitable, Callable
from typing import Final

from fairlead.engines.credentials import EngineCredentials
from fairlead.errors import Unavailable
from fairlead.fleet.model import Instance
from fairlead.runtime.http_client import fetch

KV_QUERY_SECONDS: Final = 3.0
"""Limit: an engine's reply about its event endpoints."""
KV_QUERY_BYTES: Final = 4 * 1024 * 1024
"""Limit: an engine's reply about its event endpoints, in bytes."""

EVENT_SOURCES_PATH: Final = "/kv_event_sources"
EngineQuery = Callable[[Instance, str], Awaitable[bytes]]
"""Returns the body of a 200 response to a GET request. Raises Unavailable with a short reason."""


class HttpEngineQuery:
    """The ``EngineQuery`` that sends requests over HTTP, with the instance's credentials."""

    def __init__(self, credentials: EngineCredentials) -> None:
        self._credentials = credentials

    async def __call__(self, instance: Instance, path: str) -> bytes:
        """Returns the body of a response with status 200. Raises Unavailable with a short
        reason.
        """
        try:
            return await fetch(
                instance.url.rstrip("/") + path,
                timeout_seconds=KV_QUERY_SECONDS,
                max_bytes=KV_QUERY_BYTES,
                headers=self._credentials.headers(instance.access),
                rules=self._credentials.connection_rules(instance),
            )
        except Unavailable as error:
            raise Unavailable(f"{path}: {error.message}") from error
