"""What engines are asked over HTTP: where their events are, and where adapters came from."""

from functools import partial
from typing import Final, Protocol

import msgspec

from fairlead.engines.credentials import EngineCredentials
from fairlead.errors import Unavailable
from fairlead.fleet.model import Instance
from fairlead.limits import Limits
from fairlead.runtime.http_client import fetch

EVENT_SOURCES_PATH: Final = "/kv_event_sources"
MODELS_PATH: Final = "/v1/models"


class EngineQuery(Protocol):
    """One GET to an engine."""

    async def __call__(self, instance: Instance, path: str) -> bytes:
        """The body of a 200 answer. Raises Unavailable in a few words."""
        ...


class _ServedModel(msgspec.Struct):
    id: str
    root: str | None = None
    parent: str | None = None


class _ServedModels(msgspec.Struct):
    data: list[_ServedModel]


_MODELS_DECODER: Final = msgspec.json.Decoder(_ServedModels)


def adapter_sources(answer: bytes) -> dict[str, str]:
    """Adapter → where it was loaded from, of an answer to ``/v1/models``. Raises Unavailable when it is none."""
    try:
        found = _MODELS_DECODER.decode(answer).data
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Unavailable("its /v1/models cannot be read") from None
    return {one.id: one.root for one in found if one.parent is not None and one.root is not None}


class HttpEngineQuery:
    """Sends GET requests to engines over HTTP."""

    def __init__(self, credentials: EngineCredentials, limits: Limits) -> None:
        self._credentials = credentials
        self._limits = limits

    async def __call__(self, instance: Instance, path: str) -> bytes:
        """Returns the body of a response with status 200. Raises Unavailable with a short reason."""
        try:
            return await fetch(
                instance.url.rstrip("/") + path,
                timeout_seconds=self._limits.kv_query_seconds,
                max_bytes=self._limits.kv_query_bytes,
                headers=self._credentials.headers(instance.access),
                tls_context=partial(self._credentials.tls_context, instance.access),
            )
        except Unavailable as error:
            raise Unavailable(f"{path}: {error.message}") from error
