"""The calls by which a worker lists, loads and unloads the LoRA adapters of an engine.

The calls by which a worker lets the downloader in an engine's pod fetch an adapter.

The downloader answers when the folder is complete, at once if it has it already.
"""

from typing import Final

import msgspec

from fairlead.adapters.download import DOWNLOADER_PATH, DOWNLOADER_PORT
from fairlead.adapters.model import LoraAdapter
from fairlead.engines.lora_api import lora_api
from fairlead.errors import first_line, plain_text
from fairlead.fleet.model import Instance
from fairlead_gateway.resilience.worker.retry import DOWNLOAD_FAILED, DOWNLOAD_REFUSALS, AttemptFailure
from fairlead_gateway.upstream.connection_pool import ConnectionPool, EngineCallFailed, call_engine
from fairlead_gateway.upstream.request_encoder import request_prefix
from fairlead_gateway.upstream.usage import engine_words

_MODELS_PATH: Final = "/v1/models"
_MAX_WORDS: Final = 400
"""Characters of an engine's words on a load that it refuses."""
_encode = msgspec.json.Encoder().encode


class _ListedAdapter(msgspec.Struct):
    """An entry of an engine's list of models."""

    id: str
    root: str | None = None
    parent: str | None = None


class _AdapterList(msgspec.Struct):
    """An engine's list of models."""

    data: list[_ListedAdapter]


class _CommandResult(msgspec.Struct):
    """SGLang's answer to a load. vLLM's is text."""

    success: bool = True
    error_message: str | None = None


_decode_models = msgspec.json.Decoder(_AdapterList).decode
_decode_result = msgspec.json.Decoder(_CommandResult).decode


def refusal_words(failure: EngineCallFailed) -> str:
    """Returns the engine's own words on a load that it refuses, in one line."""
    try:
        own = _decode_result(failure.body).error_message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        own = None
    return plain_text(first_line(own or engine_words(failure.body).message or failure.reason, _MAX_WORDS))


class EngineCommands:
    """The sender of these calls.

    hop_id: this gateway, for the hop header.
    """

    def __init__(self, pool: ConnectionPool, hop_id: str, *, list_seconds: float, load_seconds: float) -> None:
        self._pool = pool
        self._hop_id = hop_id
        self._list_seconds = list_seconds
        self._load_seconds = load_seconds

    async def list_loaded(self, instance: Instance) -> dict[str, str]:
        """Returns the sources of an engine's adapters by name. Raises EngineCallFailed."""
        prefix = request_prefix("GET", _MODELS_PATH, instance.url, self._hop_id)
        message = [f"{prefix.text}\r\n".encode("latin-1")]
        body = await call_engine(self._pool, instance.address, message, self._list_seconds, instance=instance)
        try:
            cards = _decode_models(body).data
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            reason = "its list of models cannot be read"
            raise EngineCallFailed(reason, cause="garbage", is_suspicious=False) from None
        return {card.id: card.root or "" for card in cards if card.parent is not None}

    async def load(self, instance: Instance, adapter: LoraAdapter) -> None:
        """Loads an adapter. Raises EngineCallFailed."""
        fields = {"lora_name": adapter.name, "lora_path": adapter.source}
        await self._post(instance, lora_api(instance.engine).load_path, fields)

    async def unload(self, instance: Instance, name: str) -> None:
        """Unloads an adapter. Raises EngineCallFailed."""
        await self._post(instance, lora_api(instance.engine).unload_path, {"lora_name": name})

    async def _post(self, instance: Instance, path: str, fields: dict[str, str]) -> None:
        body = _encode(fields)
        prefix = request_prefix("POST", path, instance.url, self._hop_id)
        message = [f"{prefix.text}{len(body)}\r\n\r\n".encode("latin-1") + body]
        answer = await call_engine(self._pool, instance.address, message, self._load_seconds, instance=instance)
        if not answer.lstrip().startswith(b"{"):
            return
        try:
            result = _decode_result(answer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if not result.success:
            reason = result.error_message or "the engine gives no reason"
            raise EngineCallFailed(reason, cause="refused-in-body", is_suspicious=False, is_final=True)


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
