"""KV events as bytes: what a block store, a removal and a clear look like on the wire of an engine.

A batch is an array ``[unix seconds, events, data-parallel rank]``. Its events are maps with a ``type`` in today's engines
(fields at their default are left out), and arrays that begin with the type in older ones, which knew fewer fields.
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
    """What one engine step did to the cache."""

    ts: float
    events: Sequence[msgspec.Struct]
    data_parallel_rank: int | None = None


class BlockStored(msgspec.Struct, tag_field="type", tag=True, omit_defaults=True, gc=False):
    """A run of blocks, as a map. ``extra_keys`` has what else than tokens went into each block's hash, or None."""

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
    """One copy of one block, as a map."""

    block_hashes: Sequence[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag_field="type", tag=True, gc=False):
    """Everything, as a map."""


class BlockStoredArray(msgspec.Struct, array_like=True, tag="BlockStored", omit_defaults=True, gc=False):
    """A run of blocks, as an older engine's array."""

    block_hashes: Sequence[int]
    parent_block_hash: int | None
    token_ids: Sequence[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: ExtraKeys | None = None


class BlockRemovedArray(msgspec.Struct, array_like=True, tag="BlockRemoved", omit_defaults=True, gc=False):
    """One copy of one block, as an older engine's array."""

    block_hashes: Sequence[int]
    medium: str | None


class AllBlocksClearedArray(msgspec.Struct, array_like=True, tag="AllBlocksCleared", gc=False):
    """Everything, as an older engine's array."""


def event_batch(
    events: Sequence[KvEvent], *, wall: float, rank: int, encoding: Encoding, adapter_id: AdapterIds
) -> EventBatch:
    """A batch of a core's events, ready to be encoded."""
    convert = _as_map if encoding == "map" else _as_array
    return EventBatch(wall, [convert(event, adapter_id) for event in events], rank)


def extra_keys(event: BlocksStored) -> ExtraKeys:
    """Per block: the adapter, and for the first block of a prompt the cache salt; None where neither applies."""
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
    """The fields that both encodings begin with, in the order of the wire."""
    adapter = event.adapter
    number = adapter_id(adapter) if adapter is not None else None
    return (event.keys, event.parent, event.tokens or (), event.block_tokens, number, _STORAGE_MEDIUM, adapter)
