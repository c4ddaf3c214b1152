"""Folders of S3 and Google Cloud Storage, by obstore.

Credentials come from the environment (`AWS_…`, `GOOGLE_…`), from the identity of the pod's service
account, or from the machine's metadata service.
"""

import re
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import (
    BaseError,
    GenericError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import GCSStore, S3Store

from fairlead.adapters.download import AdapterDownload
from fairlead_downloader.errors import CredentialsRefused, InvalidContent, SourceFailed, SourceNotFound
from fairlead_downloader.folder_writer import MAX_FILES, FolderWriter, check_name, is_hidden
from fairlead_downloader.sources.http_source import CHUNK_BYTES

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_RETRIES: "Final[RetryConfig]" = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_FILE_TIMEOUT: Final = timedelta(minutes=30)
_STATUS: Final = re.compile(
    r"\b(?:status|code)[: ]+(\d{3})\b|\b(\d{3}) (?:Forbidden|Unauthorized|Not Found)", re.IGNORECASE
)


class ObjectStores:
    """The source of s3:// and gs:// addresses.

    environment: of the process. obstore reads it by itself, except for the permission of plain
        HTTP.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._allows_http = environment.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")

    async def fetch(self, download: AdapterDownload, writer: FolderWriter) -> None:
        """Writes all objects below a prefix but hidden ones. Raises DownloadError."""
        bucket, _, prefix = download.location.partition("/")
        what = f"{download.scheme}://{bucket}/{prefix}"
        try:
            store = self._open(download.scheme, bucket)
            sizes = await _list_sizes(store, prefix, what)
            for name, size in sizes.items():
                result = await obstore.get_async(store, f"{prefix}/{name}")
                await writer.write_stream(name, _chunks(result), size)
        except NotFoundError:
            raise SourceNotFound(f"{what}: not found") from None
        except (PermissionDeniedError, UnauthenticatedError):
            raise CredentialsRefused(f"{what}: access is refused; look at the credentials") from None
        except BaseError as error:
            raise _translate(error, what) from None

    def _open(self, scheme: str, bucket: str) -> S3Store | GCSStore:
        options: ClientConfig = {"timeout": _FILE_TIMEOUT, "connect_timeout": timedelta(seconds=15)}
        if self._allows_http:
            options["allow_http"] = True
        if scheme == "s3":
            return S3Store(bucket, client_options=options, retry_config=_RETRIES)
        return GCSStore(bucket, client_options=options, retry_config=_RETRIES)


async def _list_sizes(store: S3Store | GCSStore, prefix: str, what: str) -> dict[str, int]:
    """Returns the sizes of the objects below a prefix by relative name."""
    sizes: dict[str, int] = {}
    async for batch in obstore.list(store, prefix=prefix, chunk_size=MAX_FILES):
        for item in batch:
            name = item["path"].removeprefix(f"{prefix}/")
            if item["path"] != prefix and not is_hidden(name):
                check_name(name)
                sizes[name] = item["size"]
        if len(sizes) > MAX_FILES:
            raise InvalidContent(f"{what} has more than {MAX_FILES} files")
    # Consoles mark a folder by an empty object of its name.
    folders = {name.rpartition("/")[0] for name in sizes}
    found = {name: size for name, size in sizes.items() if size or name not in folders}
    if not found:
        raise SourceNotFound(f"{what}: there are no objects below this prefix")
    return found


async def _chunks(result: "obstore.GetResult") -> AsyncIterator[bytes]:
    async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
        yield bytes(chunk)


def _translate(error: BaseError, what: str) -> SourceFailed | CredentialsRefused | SourceNotFound:
    """Returns the error of a failure that obstore has no type for.

    Its text is not shown: it may quote the answer of a server that issues credentials.
    """
    found = _STATUS.search(str(error)) if isinstance(error, GenericError) else None
    status = "" if found is None else (found[1] or found[2])
    if status in ("400", "401", "403"):
        return CredentialsRefused(f"{what}: the answer is {status}; look at the credentials")
    if status == "404":
        return SourceNotFound(f"{what}: not found")
    detail = f"the answer is {status}" if status else "it cannot be reached, or its answer cannot be read"
    return SourceFailed(f"{what}: {detail}")
