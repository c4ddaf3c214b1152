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
from fairlead_downloader.adapter_store import AdapterStore
from fairlead_downloader.errors import DownloadError, InvalidOrder

_MAX_BODY_BYTES: Final = 16 * 1024
_SOURCES: Final = {scheme: re.compile(pattern) for scheme, pattern in DOWNLOAD_PATTERNS.items()}
_REVISION: Final = re.compile(REVISION_PATTERN.strip("^$"))
_DIGEST: Final = re.compile(DIGEST_PATTERN.strip("^$"))


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request."""

    name: str
    source: str
    revision: str = ""
    digest: str = ""


_decode: Final = msgspec.json.Decoder(_Order).decode


def make_application(store: AdapterStore) -> web.Application:
    """Returns the application, whose calls the store answers."""

    async def download(request: web.Request) -> web.Response:
        try:
            name, order = parse_order(await request.read())
            adapter = await store.get(order, name)
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

    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app.add_routes([web.post(DOWNLOADER_PATH, download), web.get("/healthz", healthz)])
    return app


def parse_order(body: bytes) -> tuple[str, AdapterDownload]:
    """Returns the adapter's name and its download. Raises InvalidOrder."""
    try:
        order = _decode(body)
    except msgspec.MsgspecError as error:
        raise InvalidOrder(f"the body cannot be read: {error}") from None
    pattern = _SOURCES.get(order.source.partition("://")[0])
    if pattern is None or not pattern.fullmatch(order.source) or ".." in order.source:
        raise InvalidOrder(
            f"{order.source!r:.100} is not the source of an adapter; write hf://, s3://, gs:// or oci://"
        )
    if order.revision and not (order.source.startswith("hf://") and _REVISION.fullmatch(order.revision)):
        raise InvalidOrder("revision is the commit of an hf:// repository, 40 hexadecimal digits")
    if order.digest and not _DIGEST.fullmatch(order.digest):
        raise InvalidOrder("digest is sha256: and 64 hexadecimal digits")
    return f"{order.name!r:.100}", AdapterDownload(order.source, order.revision, order.digest)
