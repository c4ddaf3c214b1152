"""HTTP queries to engines: for their event endpoints, and for the sources of their adapters."""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from fairlead.engines.credentials import EngineCredentials
from fairlead.errors import Unavailable
from fairlead.fleet.model import Instance
from fairlead.runtime.http_client import fetch

KV_QUERY_SECONDS: Final = 3.0
"""Limit: an engine's reply about its event endpoints or its adapters."""
KV_QUERY_BYTES: Final = 4 * 1024 * 1024
"""Limit: an engine's reply about its adapters; one adapter takes some 300 bytes."""
KV_ADAPTER_POLL_SECONDS: Final = 30.0
"""Limit: interval of queries for the sources of an engine's adapters."""

EVENT_SOURCES_PATH: Final = "/kv_event_sources"
MODELS_PATH: Final = "/v1/models"
EngineQuery = Callable[[Instance, str], Awaitable[bytes]]
"""Returns the body of a 200 response to a GET request. Raises Unavailable with a short reason."""


class _ServedModel(msgspec.Struct):
    id: str
    root: str | None = None
    parent: str | None = None


class _ServedModels(msgspec.Struct):
    data: list[_ServedModel]


_MODELS_DECODER: Final = msgspec.json.Decoder(_ServedModels)


def adapter_sources(answer: bytes) -> dict[str, str]:
    """Returns adapter → source (path or URL) from a response to ``/v1/models``. Raises Unavailable
    when it cannot be read.
    """
    try:
        found = _MODELS_DECODER.decode(answer).data
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Unavailable("the engine's /v1/models response cannot be read") from None
    return {model.id: model.root for model in found if model.parent is not None and model.root is not None}


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
