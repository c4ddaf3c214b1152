"""`python -m fairlead_downloader`: serves downloads of LoRA adapters for an engine.

Credentials are read from the environment: see docs/how-to/adapters.md.

A response comes when the folder is complete. A call that is repeated finds the folder, or waits for
the download that runs.
"""

import argparse
import asyncio
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
from aiohttp import web

from fairlead.adapters.download import (
    DIGEST_PATTERN,
    DOWNLOAD_PATTERNS,
    DOWNLOADER_PATH,
    DOWNLOADER_PORT,
    DOWNLOADS_FOLDER,
    REVISION_PATTERN,
    AdapterDownload,
)
from fairlead.distribution import missing_package, missing_package_message
from fairlead.errors import FairleadError
from fairlead.runtime.aiohttp_server import refuse_foreign_pages, serve
from fairlead.runtime.event_loop import loop_factory
from fairlead_downloader.adapter_store import AdapterStore, Fetcher
from fairlead_downloader.errors import DownloadError, InvalidRequest
from fairlead_downloader.sources.http_source import open_session
from fairlead_downloader.sources.hub import Hub
from fairlead_downloader.sources.oci_registry import OciRegistries, read_docker_config

PLAIN_REGISTRIES_VARIABLE: Final = "OCI_PLAIN_HTTP_REGISTRIES"
"""Registries that are reached without TLS, as `HOST:PORT`, with commas between them."""
_CONFIG_FILES: Final = (".dockerconfigjson", "config.json")

_MAX_BODY_BYTES: Final = 16 * 1024
_SOURCES: Final = {scheme: re.compile(pattern) for scheme, pattern in DOWNLOAD_PATTERNS.items()}
_REVISION: Final = re.compile(REVISION_PATTERN.strip("^$"))
_DIGEST: Final = re.compile(DIGEST_PATTERN.strip("^$"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT, and returns 0; 2 if it cannot start."""
    options = _parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_run(options, os.environ))
    except ModuleNotFoundError as error:
        if (package := missing_package(error)) is None:
            raise
        print(f"fairlead-downloader: {missing_package_message(package)}", file=sys.stderr)
        return 2
    except (FairleadError, OSError) as error:
        print(f"fairlead-downloader: {error}", file=sys.stderr)
        return 2
    return 0


async def _run(options: argparse.Namespace, environment: Mapping[str, str]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with open_session() as session:
        fetchers = create_fetchers(session, environment, options.credentials)
        store = AdapterStore(options.folder, options.max_bytes, fetchers, time.time)
        try:
            async with serve(make_application(store), options.host, options.port) as address:
                print(f"ready http://{address}", flush=True)
                await stopped.wait()
        finally:
            await store.close()


def create_fetchers(
    session: aiohttp.ClientSession, environment: Mapping[str, str], credentials: Path | None
) -> dict[str, Fetcher]:
    """Returns the sources by scheme. Raises DownloadError for credentials that cannot be read.

    credentials: a folder that may hold a Docker configuration; None without.
    """
    from fairlead_downloader.sources.object_store import ObjectStores

    logins: dict[str, str] = {}
    for path in () if credentials is None else (credentials / name for name in _CONFIG_FILES):
        if path.is_file():
            logins |= read_docker_config(path.read_text())
    plain = frozenset(filter(None, environment.get(PLAIN_REGISTRIES_VARIABLE, "").split(",")))
    stores = ObjectStores(environment).fetch
    registries = OciRegistries(session, logins, plain).fetch
    return {"hf": Hub(session, environment).fetch, "s3": stores, "gs": stores, "oci": registries}


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fairlead-downloader", description="Downloads LoRA adapters for an engine in the same pod."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; loopback by default")
    parser.add_argument("--port", type=int, default=DOWNLOADER_PORT, help=f"port; {DOWNLOADER_PORT} by default")
    parser.add_argument("--folder", type=Path, default=Path(DOWNLOADS_FOLDER), help="folder of the downloads")
    parser.add_argument("--max-bytes", type=int, default=20 * 2**30, help="size of all downloads; 20 GiB by default")
    parser.add_argument(
        "--credentials",
        type=Path,
        default=None,
        metavar="DIR",
        help="a folder that may hold a Docker configuration, as .dockerconfigjson or config.json",
    )
    return parser.parse_args(arguments)


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


if __name__ == "__main__":
    sys.exit(main())
