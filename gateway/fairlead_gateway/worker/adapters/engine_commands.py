"""The calls by which a worker lists, loads and unloads the LoRA adapters of an engine."""

from typing import Final

import msgspec

from fairlead.adapters.model import LoraAdapter
from fairlead.engines.lora_api import lora_api
from fairlead.errors import first_line, plain_text
from fairlead.fleet.model import Instance
from fairlead_gateway.worker.upstream.connection_pool import ConnectionPool
from fairlead_gateway.worker.upstream.engine_call import EngineCallFailed, call_engine
from fairlead_gateway.worker.upstream.request_encoder import request_prefix
from fairlead_gateway.worker.upstream.usage import engine_words

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
