"""The HTTP client of hubs and registries: errors by status, and bodies of a limited length."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import msgspec

from fairlead_downloader.errors import CredentialsRefused, InvalidContent, SourceFailed, SourceNotFound

CHUNK_BYTES: Final = 1024 * 1024
_MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024
_NO_HEADERS: Final[Mapping[str, str]] = {}
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=15.0, sock_read=60.0)


def open_session() -> aiohttp.ClientSession:
    headers = {"accept-encoding": "identity", "user-agent": "fairlead-downloader"}
    return aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True, auto_decompress=False, headers=headers)


@asynccontextmanager
async def get_response(
    session: aiohttp.ClientSession, url: str, what: str, headers: Mapping[str, str] = _NO_HEADERS
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Yields the response to a GET, whatever its status. Raises SourceFailed.

    Redirects are followed; another host does not get the Authorization header.

    what: the thing that is read, for messages.
    """
    try:
        async with session.get(url, headers=headers) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise SourceFailed(f"{what}: the answer is compressed, although that was not asked for")
            yield response
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise SourceFailed(f"{what}: {_describe(error)}") from None


def check_status(response: aiohttp.ClientResponse, what: str) -> None:
    """Raises for a status other than 200."""
    if response.status in (401, 403):
        raise CredentialsRefused(f"{what}: the answer is {response.status}; look at the credentials")
    if response.status == 404:
        raise SourceNotFound(f"{what}: not found")
    if response.status != 200:
        raise SourceFailed(f"{what}: the answer is {response.status}")


async def read_document(response: aiohttp.ClientResponse, what: str) -> bytes:
    """Returns the body. Raises InvalidContent for a long one."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        body += chunk
        if len(body) > _MAX_DOCUMENT_BYTES:
            raise InvalidContent(f"{what}: the answer is longer than {_MAX_DOCUMENT_BYTES} bytes")
    return bytes(body)


def parse_object(body: bytes, what: str) -> dict[str, Any]:
    """Returns a JSON object. Raises SourceFailed."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        raise SourceFailed(f"{what}: the answer is not a JSON object") from None


def _describe(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect to {error.host}:{error.port}"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer was cut off"
    return type(error).__name__
