"""The wire format of vLLM's KV events.

A batch is an array ``[unix seconds, events, data-parallel rank]``. Present engines send each event
as a map with a ``type`` and leave out fields at their default. Older engines send arrays that begin
with the type and have fewer fields. The class names of the events are their types on the wire.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, CacheCleared, KvEvent

Encoding = Literal["map", "array"]
AdapterIds = Callable[[str], int | None]
ExtraKeys = list[list[str] | None]

_STORAGE_MEDIUM = "GPU"
_CACHE_SPEC_KIND = "full_attention"


class EventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """The cache changes of one engine step."""

    ts: float
    events: Sequence[msgspec.Struct]
    data_parallel_rank: int | None = None


class BlockStored(msgspec.Struct, tag_field="type", tag=True, omit_defaults=True, gc=False):
    """A run of stored blocks, as a map.

    extra_keys: what else went into each block's hash; None for tokens only.
    """

    block_hashes: Sequence[int]
    parent_block_hash: int | None
    token_ids: Sequence[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: ExtraKeys | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    session_id: str | None = None


class BlockRemoved(msgspec.Struct, tag_field="type", tag=True, omit_defaults=True, gc=False):
    """One evicted copy of one block, as a map."""

    block_hashes: Sequence[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag_field="type", tag=True, gc=False):
    """The emptied cache, as a map."""


class BlockStoredArray(msgspec.Struct, array_like=True, tag="BlockStored", omit_defaults=True, gc=False):
    """A run of stored blocks, as an array."""

    block_hashes: Sequence[int]
    parent_block_hash: int | None
    token_ids: Sequence[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: ExtraKeys | None = None


class BlockRemovedArray(msgspec.Struct, array_like=True, tag="BlockRemoved", omit_defaults=True, gc=False):
    """One evicted copy of one block, as an array."""

    block_hashes: Sequence[int]
    medium: str | None


class AllBlocksClearedArray(msgspec.Struct, array_like=True, tag="AllBlocksCleared", gc=False):
    """The emptied cache, as an array."""


def event_batch(
    events: Sequence[KvEvent], *, wall: float, rank: int, encoding: Encoding, adapter_id: AdapterIds
) -> EventBatch:
    """Returns the events of one step as a batch, ready to be encoded."""
    convert = _as_map if encoding == "map" else _as_array
    return EventBatch(wall, [convert(event, adapter_id) for event in events], rank)


def extra_keys(event: BlocksStored) -> ExtraKeys:
    """Returns per block the adapter, and for the first block of a prompt also the cache salt."""
    rest = [event.adapter] if event.adapter is not None else []
    first = [*rest, event.salt] if event.parent is None and event.salt is not None else rest
    return [(first if number == 0 else rest) or None for number in range(len(event.keys))]


def _as_map(event: KvEvent, adapter_id: AdapterIds) -> msgspec.Struct:
    match event:
        case BlocksStored():
            return BlockStored(
                *_stored_fields(event, adapter_id),
                extra_keys=extra_keys(event),
                group_idx=0,
                kv_cache_spec_kind=_CACHE_SPEC_KIND,
                session_id=event.session,
            )
        case BlockEvicted(key):
            return BlockRemoved((key,), _STORAGE_MEDIUM, 0)
        case CacheCleared():
            return AllBlocksCleared()


def _as_array(event: KvEvent, adapter_id: AdapterIds) -> msgspec.Struct:
    match event:
        case BlocksStored():
            extra = extra_keys(event)
            return BlockStoredArray(*_stored_fields(event, adapter_id), extra_keys=extra if any(extra) else None)
        case BlockEvicted(key):
            return BlockRemovedArray((key,), _STORAGE_MEDIUM)
        case CacheCleared():
            return AllBlocksClearedArray()


_StoredFieldValues = tuple[Sequence[int], int | None, Sequence[int], int, int | None, str | None, str | None]


def _stored_fields(event: BlocksStored, adapter_id: AdapterIds) -> _StoredFieldValues:
    """Returns the fields that begin both encodings, in the order of the wire."""
    adapter = event.adapter
    number = adapter_id(adapter) if adapter is not None else None
    return (event.keys, event.parent, event.tokens or (), event.block_tokens, number, _STORAGE_MEDIUM, adapter)
