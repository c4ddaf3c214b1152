"""The context lengths of models, as their engines state them in `/v1/models`.

An engine is asked when a client asks for the list, and again after some minutes: a rollout may
change the length. Clients wait for the answer for a second at most. Where the operator states a
length, no engine is asked. A length that nothing states is not shown.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from fairlead.fleet.model import Fleet, Instance, InstanceState, Role
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.upstream.connection_pool import ConnectionPool, EngineCallFailed, call_engine
from fairlead_gateway.upstream.request_encoder import request_prefix

_PATH: Final = "/v1/models"
_WAIT_SECONDS: Final = 1.0
_CALL_SECONDS: Final = 5.0
_KNOWN_SECONDS: Final = 300.0
_UNKNOWN_SECONDS: Final = 30.0
_MAX_CALLS: Final = 64
_MAX_LENGTH: Final = 1 << 31


class _Card(msgspec.Struct):
    """An entry of an engine's list of models."""

    id: str
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    """An engine's list of models."""

    data: list[_Card]


_decode_cards = msgspec.json.Decoder(_Cards).decode


class ContextLengths:
    """The lengths by model, in tokens; the models without one are absent.

    hop_id: this gateway, for the hop header.
    fleet: returns the fleet with its instances.
    """

    def __init__(self, runtime: WorkerRuntime, pool: ConnectionPool, hop_id: str, fleet: Callable[[], Fleet]) -> None:
        self._loop = runtime.loop
        self._now = runtime.now
        self._pool = pool
        self._hop_id = hop_id
        self._fleet = fleet
        self._stated: dict[str, tuple[str, float]] = {}  # the instance, and until when its answer holds
        self._calls: dict[str, asyncio.Task[None]] = {}
        self.by_model: dict[str, int] = {}

    def unknown(self, keys: Iterable[str]) -> list[str]:
        now, fleet = self._now(), self._fleet()
        return [key for key in keys if self._is_due(fleet, key, now)]

    async def read(self, keys: Iterable[str]) -> None:
        """Reads the length from an engine of each model, and waits for a second at most."""
        for key in keys:
            instance = _ready_instance(self._fleet(), key)
            if instance is not None and key not in self._calls and len(self._calls) < _MAX_CALLS:
                self._calls[key] = self._loop.create_task(self._read(key, instance))
        if self._calls:
            await asyncio.wait(list(self._calls.values()), timeout=_WAIT_SECONDS)

    def close(self) -> None:
        for call in list(self._calls.values()):
            call.cancel()

    def _is_due(self, fleet: Fleet, key: str, now: float) -> bool:
        model = fleet.models.get(key)
        if model is None or model.context_length is not None:
            return False
        instance_id, until = self._stated.get(key, ("", now))
        if now < until and any(instance.id == instance_id for instance in fleet.instances.get(key, ())):
            return False
        return _ready_instance(fleet, key) is not None

    async def _read(self, key: str, instance: Instance) -> None:
        try:
            length = await self._length(instance)
        finally:
            del self._calls[key]
        if length is None:
            self.by_model.pop(key, None)
        else:
            self.by_model[key] = length
        self._stated[key] = instance.id, self._now() + (_UNKNOWN_SECONDS if length is None else _KNOWN_SECONDS)

    async def _length(self, instance: Instance) -> int | None:
        prefix = request_prefix("GET", _PATH, instance.url, self._hop_id)
        message = [f"{prefix.text}\r\n".encode("latin-1")]
        try:
            body = await call_engine(
                self._pool, instance.address, message, _CALL_SECONDS, instance=instance, needs_core=False
            )
            cards = _decode_cards(body).data
        except (EngineCallFailed, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        name = instance.model if instance.served_name is None else instance.served_name
        lengths = {card.id: card.max_model_len for card in cards if card.max_model_len is not None}
        length = lengths.get(name, max(lengths.values(), default=None))
        return length if length is not None and 0 < length < _MAX_LENGTH else None


def shortest(lengths: Mapping[str, int], keys: Iterable[str]) -> int | None:
    """Returns the shortest length of some models; None if one of them is unknown."""
    known = [lengths.get(key) for key in keys]
    return min((length for length in known if length is not None), default=None) if None not in known else None


def _ready_instance(fleet: Fleet, key: str) -> Instance | None:
    """Returns an instance that can be asked. An API that others run lists their whole account."""
    for instance in fleet.instances.get(key, ()):
        if instance.state is InstanceState.READY and instance.role is not Role.PREFILL and not instance.leaves_cluster:
            return instance
    return None
