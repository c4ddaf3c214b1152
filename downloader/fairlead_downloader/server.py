"""The API of the downloader: `POST /v1/adapters`, and `/healthz`.

A response comes when the folder is complete. A call that is repeated finds the folder, or waits for
the download that runs.
"""

import re
from typing import Final

import msgspec
from aiohttp import web

from fairlead.adapters.download import (
    DIGEST_PATTERN,
    DOWNLOAD_PATTERNS,
    DOWNLOADER_PATH,
    REVISION_PATTERN,
    AdapterDownload,
)
from fairlead.runtime.aiohttp_server import refuse_foreign_pages
from fairlead_downloader.adapter_store import AdapterStore
from fairlead_downloader.errors import DownloadError, InvalidRequest

_MAX_BODY_BYTES: Final = 16 * 1024
_SOURCES: Final = {scheme: re.compile(pattern) for scheme, pattern in DOWNLOAD_PATTERNS.items()}
_REVISION: Final = re.compile(REVISION_PATTERN.strip("^$"))
_DIGEST: Final = re.compile(DIGEST_PATTERN.strip("^$"))


class _DownloadRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request."""

    name: str
    source: str
    revision: str = ""
    digest: str = ""


_decode: Final = msgspec.json.Decoder(_DownloadRequest).decode


def make_application(store: AdapterStore) -> web.Application:
    """Returns the application, whose calls the store answers."""

    async def download(request: web.Request) -> web.Response:
        try:
            name, wanted = parse_request(await request.read())
            adapter = await store.get(wanted, name)
        except DownloadError as error:
            body: dict[str, object] = {"error": {"code": error.code, "message": str(error)}}
            return web.json_response(body, status=error.status)
        return web.json_response(
            {
                "path": str(adapter.path),
                "bytes": adapter.bytes,
                "seconds": round(adapter.seconds, 3),
                "digest": adapter.digest,
            }
        )

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application(middlewares=[refuse_foreign_pages], client_max_size=_MAX_BODY_BYTES)
    app.add_routes([web.post(DOWNLOADER_PATH, download), web.get("/healthz", healthz)])
    return app


def parse_request(body: bytes) -> tuple[str, AdapterDownload]:
    """Returns the adapter's name, cut for logs, and its download. Raises InvalidRequest."""
    try:
        request = _decode(body)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"the body cannot be read: {error}") from None
    pattern = _SOURCES.get(request.source.partition("://")[0])
    if pattern is None or not pattern.fullmatch(request.source) or ".." in request.source:
        raise InvalidRequest(
            f"{request.source!r:.100} is not the source of an adapter; write hf://, s3://, gs:// or oci://"
        )
    if request.revision and not (request.source.startswith("hf://") and _REVISION.fullmatch(request.revision)):
        raise InvalidRequest("revision is the commit of an hf:// repository, 40 hexadecimal digits")
    if request.digest and not _DIGEST.fullmatch(request.digest):
        raise InvalidRequest("digest is sha256: and 64 hexadecimal digits")
    return f"{request.name!r:.100}", AdapterDownload(request.source, request.revision, request.digest)
