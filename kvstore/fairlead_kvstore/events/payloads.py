"""The events of vLLM and SGLang as they are encoded in a payload.

A payload is msgpack: the array ``[ts, events, data_parallel_rank]``; the rank is optional. An event
is either a map with the key ``type`` (vLLM since 0.30), or an array ``[tag, …]`` with the same
fields by position. The array is the form of earlier vLLM, of SGLang and of llm-d-inference-sim.
Arrays may be shorter: SGLang's end with the medium. Other fields are skipped.

A hash is an unsigned 64-bit number, a signed one (SGLang), or the whole digest as bytes. A token id
fits 32 bits: real vocabularies have 18, and llm-d-inference-sim sends 32-bit hashes of words.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

EngineHash = int | bytes
TokenId = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
ExtraKey = Any
"""One extra key of a block.

It is an adapter's name, a salt, a digest (text or bytes), or ``[identifier, offset]`` of an image.
"""


class StoredEvent(msgspec.Struct, tag="BlockStored", gc=False):
    """An event or a part of one: consecutive blocks are now in ``medium``.

    token_ids: ``block_size`` ids for each block.
    extra_keys: one entry per block; None when the engine does not report them.
    parent_block_hash: None (or 0) at the start of a prompt.
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
    """An event or a part of one: one copy of each of these blocks was removed from ``medium``."""

    block_hashes: list[EngineHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: Any = None


class ClearedEvent(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    """An event: the prefix cache was cleared, in ``medium`` only if one is named. vLLM names none,
    whichever tiers it has cleared.
    """

    medium: str | None = None


CacheEvent = StoredEvent | RemovedEvent | ClearedEvent


class StoredEventArray(StoredEvent, tag="BlockStored", array_like=True, gc=False):
    """A stored event as an array: ``["BlockStored", block_hashes, parent, token_ids, …]``."""


class RemovedEventArray(RemovedEvent, tag="BlockRemoved", array_like=True, gc=False):
    """A removed event as an array: ``["BlockRemoved", block_hashes, medium, group_idx]``."""


class ClearedEventArray(ClearedEvent, tag="AllBlocksCleared", array_like=True, gc=False):
    """A cleared event as an array: ``["AllBlocksCleared"]``."""


class WireStored(msgspec.Struct, tag="BlockStored", gc=False):
    """A stored event as it is encoded, whose lists are decoded in parts.

    ``Raw()`` stands for a field that is absent.
    """

    block_hashes: msgspec.Raw
    parent_block_hash: EngineHash | None
    token_ids: msgspec.Raw
    block_size: int
    lora_id: int | str | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: msgspec.Raw = msgspec.Raw()
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: msgspec.Raw = msgspec.Raw()


class WireRemoved(msgspec.Struct, tag="BlockRemoved", gc=False):
    """A removed event as it is encoded."""

    block_hashes: msgspec.Raw
    medium: str | None = None
    group_idx: int | None = None
    locality: msgspec.Raw = msgspec.Raw()


class WireStoredArray(WireStored, tag="BlockStored", array_like=True, gc=False):
    """The same as an array."""


class WireRemovedArray(WireRemoved, tag="BlockRemoved", array_like=True, gc=False):
    """The same as an array."""


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
    """A payload whose events are decoded one by one."""

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
    """The decoded events of one payload or of a slice of it, in its order.

    wall: the engine's clock when it sent the payload, in Unix seconds.
    unknown: number of events left out because this release does not know their kind.
    refused: number of stored events left out because they are inconsistent.
    """

    wall: float
    events: Sequence[CacheEvent]
    unknown: int = 0
    refused: int = 0
