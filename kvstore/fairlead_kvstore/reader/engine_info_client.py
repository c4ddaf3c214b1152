"""What engines are asked over HTTP: where their events are, and where adapters came from."""

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import httpx
import msgspec

from fairlead.errors import Unavailable
from fairlead.fleet.model import EngineAuth, Instance
from fairlead.limits import Limits

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
    """``Ask`` by httpx. ``environ`` holds tokens that the fleet names by variable. Nothing is followed, and no proxy is used."""

    def __init__(self, environ: Mapping[str, str], limits: Limits) -> None:
        self._environ = environ
        self._limits = limits
        self._clients: dict[str | None, httpx.AsyncClient] = {}

    async def __call__(self, instance: Instance, path: str) -> bytes:
        """The body of a 200 answer. Raises Unavailable in a few words."""
        try:
            async with asyncio.timeout(self._limits.kv_query_seconds):
                return await self._get(instance, path)
        except TimeoutError:
            raise Unavailable(f"{path}: no answer within {self._limits.kv_query_seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise Unavailable(f"{path}: {type(error).__name__}") from error

    async def close(self) -> None:
        """End all connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    async def _get(self, instance: Instance, path: str) -> bytes:
        client, most = self._client(instance.access.ca_file), self._limits.kv_query_bytes
        url, shown = instance.url.rstrip("/") + path, _auth_headers(instance.access, self._environ)
        async with client.stream("GET", url, headers=shown) as answer:
            if answer.status_code != 200:
                raise Unavailable(f"{path} answers {answer.status_code}")
            body = bytearray()
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > most:
                    raise Unavailable(f"its {path} is longer than {most} bytes")
            return bytes(body)

    def _client(self, authority: str | None) -> httpx.AsyncClient:
        known = self._clients.get(authority)
        if known is None:
            verify = ssl.create_default_context(cafile=authority)
            seconds = self._limits.kv_query_seconds
            known = self._clients[authority] = httpx.AsyncClient(timeout=seconds, verify=verify, trust_env=False)
        return known


def _auth_headers(access: EngineAuth, environ: Mapping[str, str]) -> dict[str, str]:
    """The header with the engine's token, where it wants one."""
    if access.token_env is not None:
        token = environ.get(access.token_env, "")
    elif access.token_file is not None:
        token = Path(access.token_file).read_text(encoding="utf-8")
    else:
        return {}
    return {"authorization": f"Bearer {token.strip()}"} if token.strip() else {}
