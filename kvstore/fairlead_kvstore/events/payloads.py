"""The events of vLLM and SGLang as they lie in a payload.

A payload is msgpack: the array ``[ts, events, data_parallel_rank]`` (the rank may be missing). An event is a map with the
key ``type`` (vLLM since 0.30), or an array ``[tag, …]`` with the same fields by position (vLLM before, SGLang,
llm-d-inference-sim). Arrays may be shorter: SGLang's end with the medium. Fields that are not listed here are skipped.

A hash is an unsigned 64-bit number, a signed one (SGLang), or the whole digest as bytes. A token id fits 32 bits: real
vocabularies have 18, and llm-d-inference-sim sends 32-bit hashes of words.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

EngineHash = int | bytes
TokenId = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
ExtraKey = Any
"""One extra key of a block: an adapter's name, a salt, a digest (text or bytes), or ``[identifier, offset]`` of an image."""


class StoredEvent(msgspec.Struct, tag="BlockStored", gc=False):
    """Blocks that follow one another are now in ``medium``. ``token_ids`` holds ``block_size`` ids for each of them.

    ``extra_keys`` has one entry per block; None means that the engine does not say what else the blocks depend on.
    ``parent_block_hash`` None (or 0) is the start of a prompt.
    """

    block_hashes: list[EngineHash]
    parent_block_hash: EngineHash | None
    token_ids: list[TokenId]
    block_size: int
    lora_id: int | str | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[ExtraKey] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: Any = None


class RemovedEvent(msgspec.Struct, tag="BlockRemoved", gc=False):
    """One copy of each of these blocks has left ``medium``."""

    block_hashes: list[EngineHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: Any = None


class ClearedEvent(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    """The prefix cache was reset. vLLM names no medium, whatever it has reset; where one is named, only that is meant."""

    medium: str | None = None


CacheEvent = StoredEvent | RemovedEvent | ClearedEvent


class StoredEventArray(StoredEvent, tag="BlockStored", array_like=True, gc=False):
    """``["BlockStored", block_hashes, parent, token_ids, block_size, lora_id, medium, …]``."""


class RemovedEventArray(RemovedEvent, tag="BlockRemoved", array_like=True, gc=False):
    """``["BlockRemoved", block_hashes, medium, group_idx]``."""


class ClearedEventArray(ClearedEvent, tag="AllBlocksCleared", array_like=True, gc=False):
    """``["AllBlocksCleared"]``."""


class MapBatch(msgspec.Struct, array_like=True, gc=False):
    """A payload whose events are maps."""

    ts: float
    events: list[StoredEvent | RemovedEvent | ClearedEvent]
    data_parallel_rank: int | None = None


class ArrayBatch(msgspec.Struct, array_like=True, gc=False):
    """A payload whose events are arrays."""

    ts: float
    events: list[StoredEventArray | RemovedEventArray | ClearedEventArray]
    data_parallel_rank: int | None = None


class RawBatch(msgspec.Struct, array_like=True, gc=False):
    """A payload whose events are looked at one by one."""

    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class TaggedEvent(msgspec.Struct):
    """The kind of an event that is a map."""

    type: str


class TaggedEventArray(msgspec.Struct, array_like=True):
    """The kind of an event that is an array."""

    type: str


class EventBatch(msgspec.Struct, frozen=True, gc=False):
    """What one payload said, in its order. ``wall`` is the engine's clock, Unix seconds; ``rank`` its data-parallel rank.

    ``unknown`` events are of a kind that this release does not know, ``refused`` stores did not hold together.
    """

    wall: float
    events: Sequence[CacheEvent]
    rank: int | None = None
    unknown: int = 0
    refused: int = 0
