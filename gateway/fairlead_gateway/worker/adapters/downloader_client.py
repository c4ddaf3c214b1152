"""The calls by which a worker lets the downloader in an engine's pod fetch an adapter.

The downloader answers when the folder is complete, at once if it has it already.
"""

from typing import Final

import msgspec

from fairlead.adapters.download import DOWNLOADER_PATH, DOWNLOADER_PORT
from fairlead.adapters.model import LoraAdapter
from fairlead.fleet.model import Instance
from fairlead_gateway.worker.resilience.retry import DOWNLOAD_FAILED, DOWNLOAD_REFUSALS, AttemptFailure
from fairlead_gateway.worker.upstream.connection_pool import ConnectionPool
from fairlead_gateway.worker.upstream.engine_call import EngineCallFailed, call_engine
from fairlead_gateway.worker.upstream.request_encoder import request_prefix

_encode = msgspec.json.Encoder().encode


class _Downloaded(msgspec.Struct):
    """The answer of a downloader."""

    path: str
    seconds: float


class _Error(msgspec.Struct):
    """Why a download failed."""

    code: str


class _Refusal(msgspec.Struct):
    """The answer to a download that failed."""

    error: _Error


_decode_downloaded: Final = msgspec.json.Decoder(_Downloaded).decode
_decode_refusal: Final = msgspec.json.Decoder(_Refusal).decode


class DownloaderClient:
    """The sender of these calls.

    hop_id: this gateway, for the hop header.
    seconds: how long a download may take.
    port: of the downloaders.
    """

    def __init__(self, pool: ConnectionPool, hop_id: str, seconds: float) -> None:
        self._pool = pool
        self._hop_id = hop_id
        self._seconds = seconds
        self.port: int = DOWNLOADER_PORT

    async def fetch(self, instance: Instance, adapter: LoraAdapter) -> float:
        """Lets an adapter be downloaded if it needs that. Raises AttemptFailure.

        Returns the seconds of the download; 0 if the folder was there.
        """
        download = adapter.download
        if download is None:
            return 0.0
        fields = {"name": adapter.name, "source": download.source}
        if download.revision:
            fields["revision"] = download.revision
        if download.digest:
            fields["digest"] = download.digest
        body = _encode(fields)
        host = instance.url.partition("://")[2].rpartition(":")[0]
        address = f"http://{host}:{self.port}"
        prefix = request_prefix("POST", DOWNLOADER_PATH, address, self._hop_id)
        message = [f"{prefix.text}{len(body)}\r\n\r\n".encode("latin-1") + body]
        try:
            downloaded = _decode_downloaded(await call_engine(self._pool, address, message, self._seconds))
        except EngineCallFailed as failure:
            raise AttemptFailure(_cause_of(failure.body), was_sent=False) from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise AttemptFailure(DOWNLOAD_FAILED, was_sent=False) from None
        if downloaded.path != adapter.source:  # its folder is another one than the engine's
            raise AttemptFailure(DOWNLOAD_FAILED, was_sent=False)
        return downloaded.seconds


def _cause_of(body: bytes) -> str:
    """Returns the cause of a failure by the downloader's answer; empty without one."""
    try:
        return DOWNLOAD_REFUSALS.get(_decode_refusal(body).error.code, DOWNLOAD_FAILED)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return DOWNLOAD_FAILED
