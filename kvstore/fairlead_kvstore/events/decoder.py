"""Decodes payloads of KV events in both encodings, in slices, within limits and with one kind of
error.

Usual batches are read by ``native/event_scanner.pyx`` where that is compiled. Every other payload
comes here. A small valid one is decoded at once. Else only the boundaries of its events are read at
first. Each event is decoded with its slice, of about ``kv_slice_bytes``, so that a large batch does
not occupy the indexer. A newer engine's additions do no harm:

- An event of an unknown kind is left out and counted (``unknown``).
- An inconsistent stored event is left out and counted (``refused``): it costs a cache hit.
- A removed or cleared event that cannot be read makes the whole batch unreadable. A missed removal
  would leave a ghost, so the reader must treat such a batch as lost, see ``stream_sequencer.py``.

An event that is larger than a slice is divided by its blocks. Each part continues after the last
block of the part before, so that the parts mean the same as the event.

Fields of any type can hold a million empty arrays. They stay undecoded until their size is known.
Extra keys are decoded block by block, and those of one block have a bound of their own.

Why: 2 MiB of tiny events take 0.9 s. Meanwhile, the indexer read no other engine, wrote nothing and
renewed no lease.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import xxhash

from fairlead.limits import Limits
from fairlead_kvstore.errors import MalformedEvents, OversizedEvents
from fairlead_kvstore.events.payloads import (
    ArrayBatch,
    CacheEvent,
    ClearedEvent,
    ClearedEventArray,
    EngineHash,
    EventBatch,
    MapBatch,
    RawBatch,
    RemovedEvent,
    StoredEvent,
    TaggedEvent,
    TaggedEventArray,
    TokenId,
    WireRemoved,
    WireRemovedArray,
    WireStored,
    WireStoredArray,
)

BLOCK_BYTES: Final = 16
"""The cost of a block, besides the bytes of its event: some events have two bytes a block."""
EVENT_BYTES: Final = 16
"""The fixed cost of an event, in bytes."""
_UNKNOWN: Final = "unknown"
"""An event that is left out because this release does not know its kind."""
_REFUSED: Final = "refused"
"""A stored event that is left out because it is inconsistent."""
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_CONTINUED: Final = 1 << 64
"""Makes a parent's hash differ from 0, which means none; only the lower 64 bits count."""
_MAX_ANY_BYTES: Final = 16_384
"""Extra keys of one block, or a locality. Digests have 64 characters, and images few a block."""
_SMALL_FRACTION: Final = 8
"""A payload of at most one part of so many of a slice has blocks of about a slice at most."""
_SMALL: Final[tuple[Any, ...]] = (msgspec.msgpack.Decoder(MapBatch), msgspec.msgpack.Decoder(ArrayBatch))
_RAW: Final = msgspec.msgpack.Decoder(RawBatch)
_MAP_EVENT: Final = msgspec.msgpack.Decoder(WireStored | WireRemoved | ClearedEvent)
_ARRAY_EVENT: Final = msgspec.msgpack.Decoder(WireStoredArray | WireRemovedArray | ClearedEventArray)
_MAP_TAG: Final = msgspec.msgpack.Decoder(TaggedEvent)
_ARRAY_TAG: Final = msgspec.msgpack.Decoder(TaggedEventArray)
_HASHES: Final = msgspec.msgpack.Decoder(list[EngineHash])
_TOKENS: Final = msgspec.msgpack.Decoder(list[TokenId])
_RAW_ITEMS: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_EXTRA_KEYS: Final = msgspec.msgpack.Decoder(list[Any] | None)
_ANY: Final = msgspec.msgpack.Decoder()
_NIL: Final = b"\xc0"
_NUMBER_BYTES: Final = {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
"""The length of a number by its first byte; others have one byte."""
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)

Part = CacheEvent | str | None
"""A part of an event: ``unknown`` or ``refused`` where the rest of it is left out, None where
nothing but time has passed.
"""


def event_slices(payload: bytes, limits: Limits, start: int = 0) -> Iterator[tuple[int, EventBatch]]:
    """Yields the events of a payload in order, in slices with their cost in bytes; one slice or
    more.

    Raises EventsError, and nothing else, for any bytes: before the first slice, or between two.

    start: the first event.
    """
    small = _small_slice(payload, limits, start)
    if small is not None:
        yield small
        return
    batch = _decode_batch(payload, limits)
    if len(payload) > limits.kv_slice_bytes:
        yield limits.kv_slice_bytes, EventBatch(batch.ts, ())  # reading the boundaries takes some ms
    events: list[CacheEvent] = []
    unknown = refused = cost = 0
    for item in batch.events[start:]:
        for part_cost, part in _event_parts(item, limits):
            cost += part_cost
            if isinstance(part, str):
                unknown += part == _UNKNOWN
                refused += part == _REFUSED
            elif part is not None:
                events.append(part)
            if cost >= limits.kv_slice_bytes:
                yield cost, EventBatch(batch.ts, events, unknown, refused)
                events, unknown, refused, cost = [], 0, 0, 0
    yield cost, EventBatch(batch.ts, events, unknown, refused)


def _small_slice(payload: bytes, limits: Limits, start: int) -> tuple[int, EventBatch] | None:
    """Returns the cost and the events of a small batch of which nothing is left out; None for any
    other.
    """
    cost = len(payload)
    if cost > min(limits.kv_slice_bytes // _SMALL_FRACTION, limits.kv_events_bytes, _MAX_ANY_BYTES):
        return None
    for decoder in _SMALL:
        try:
            batch: MapBatch | ArrayBatch = decoder.decode(payload)
        except _UNREADABLE:
            continue
        is_valid = len(batch.events) <= limits.kv_events_in_batch
        for event in batch.events:
            cost += EVENT_BYTES
            if isinstance(event, ClearedEvent):
                continue
            blocks = len(event.block_hashes)
            cost += blocks * BLOCK_BYTES
            if isinstance(event, RemovedEvent):
                is_valid &= blocks <= limits.kv_event_blocks
            else:
                keys = blocks if event.extra_keys is None else len(event.extra_keys)
                is_valid &= _is_consistent(blocks, len(event.token_ids), event.block_size, keys, limits)
        return (cost, EventBatch(batch.ts, batch.events[start:])) if is_valid else None
    return None


def _decode_batch(payload: bytes, limits: Limits) -> RawBatch:
    """Returns a batch with undecoded events. Raises EventsError.

    Why: their number is read from the bytes first, since two million of them would be decoded in
    one turn.
    """
    if len(payload) > limits.kv_events_bytes:
        text = f"the payload has {len(payload)} bytes, over the limit of {limits.kv_events_bytes}"
        raise OversizedEvents(text, reason="bytes")
    at = {0xDC: 3, 0xDD: 5}.get(payload[0], 1) if payload else 0
    count = _array_length(payload, at + _NUMBER_BYTES.get(payload[at], 1)) if at < len(payload) else -1
    if limits.kv_events_in_batch < count <= len(payload):
        text = f"the batch has {count} events, over the limit of {limits.kv_events_in_batch}"
        raise OversizedEvents(text, reason="events")
    try:
        if 0 <= count <= len(payload):
            return _RAW.decode(payload)
    except _UNREADABLE:
        pass
    text = "the bytes are no batch [ts, events, rank] of KV events"
    raise MalformedEvents(text, reason="shape", hint="subscribe to the engine's KV events only")


def _array_length(data: bytes | msgspec.Raw, at: int = 0) -> int:
    """Returns the length of the msgpack array that begins at ``at``; -1 if there is none."""
    view = memoryview(data)
    first = view[at] if at < len(view) else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    size = {0xDC: 2, 0xDD: 4}.get(first, 0)
    return int.from_bytes(view[at + 1 : at + 1 + size], "big") if size else -1


def _event_parts(item: msgspec.Raw, limits: Limits) -> Iterator[tuple[int, Part]]:
    """Yields the parts of an event with their cost. Raises EventsError."""
    is_array = _array_length(item) >= 0
    decoder: Any = _ARRAY_EVENT if is_array else _MAP_EVENT
    cost = min(len(memoryview(item)), limits.kv_slice_bytes)
    try:
        event = decoder.decode(item)
        if isinstance(event, WireStored):
            yield from _stored_parts(event, cost, limits)
        elif isinstance(event, WireRemoved):
            yield from _removed_parts(event, cost, limits)
        else:
            yield cost + EVENT_BYTES, event
    except _UNREADABLE:
        yield cost + EVENT_BYTES, _why_left_out(item, is_array=is_array)


def _why_left_out(item: msgspec.Raw, *, is_array: bool) -> str:
    """Returns why an event that cannot be read is left out. Raises MalformedEvents if it may
    not be.
    """
    tag: Any = _ARRAY_TAG if is_array else _MAP_TAG
    try:
        kind: str = tag.decode(item).type
    except _UNREADABLE:
        raise MalformedEvents("an event has no kind", reason="kind") from None
    if kind in ("BlockRemoved", "AllBlocksCleared"):
        raise MalformedEvents(f"a {kind} event cannot be read", reason="removal")
    return _REFUSED if kind == "BlockStored" else _UNKNOWN


def _stored_parts(event: WireStored, cost: int, limits: Limits) -> Iterator[tuple[int, Part]]:
    """Yields the parts of a stored event. ``cost``: of one pass over its bytes, a slice at most."""
    blocks, tokens = _array_length(event.block_hashes), _array_length(event.token_ids)
    has_extras, size = bytes(memoryview(event.extra_keys)[:1]) not in (b"", _NIL), event.block_size
    keys = _array_length(event.extra_keys) if has_extras else blocks
    if not _is_consistent(blocks, tokens, size, keys, limits):
        yield cost + EVENT_BYTES, _REFUSED
        return
    is_large = cost == limits.kv_slice_bytes  # each step takes as long as a slice
    hashes = _HASHES.decode(event.block_hashes)
    if is_large:
        yield cost, None
    ids = _TOKENS.decode(event.token_ids)
    if is_large:
        yield cost, None
    extras = _RAW_ITEMS.decode(event.extra_keys) if has_extras else []
    yield cost, None
    locality, parent, start, stop = _locality(event.locality), event.parent_block_hash, 0, 0
    while True:
        part_cost = EVENT_BYTES
        while stop < blocks and (stop == start or part_cost < limits.kv_slice_bytes):
            key_bytes = len(memoryview(extras[stop])) if has_extras else 0
            if key_bytes > _MAX_ANY_BYTES:
                yield part_cost, _REFUSED
                return
            part_cost += BLOCK_BYTES + size + key_bytes
            stop += 1
        part = StoredEvent(
            hashes[start:stop],
            parent,
            ids[start * size : stop * size],
            size,
            event.lora_id,
            event.medium,
            event.lora_name,
            [_EXTRA_KEYS.decode(keys) for keys in extras[start:stop]] if has_extras else None,
            event.group_idx,
            event.kv_cache_spec_kind,
            event.kv_cache_spec_sliding_window,
            locality,
        )
        yield part_cost, part
        if stop == blocks:
            return
        start, last = stop, hashes[stop - 1]
        parent = (last & _MASK if isinstance(last, int) else xxhash.xxh3_64_intdigest(last)) | _CONTINUED


def _is_consistent(blocks: int, tokens: int, size: int, keys: int, limits: Limits) -> bool:
    is_bounded = 0 <= blocks <= limits.kv_event_blocks and 0 < size <= limits.kv_event_block_tokens
    return is_bounded and tokens == blocks * size and keys == blocks


def _removed_parts(event: WireRemoved, cost: int, limits: Limits) -> Iterator[tuple[int, Part]]:
    blocks = _array_length(event.block_hashes)
    if blocks > limits.kv_event_blocks:
        text = f"one event removes {blocks} blocks, over the limit of {limits.kv_event_blocks}"
        raise OversizedEvents(text, reason="blocks")
    hashes, locality = _HASHES.decode(event.block_hashes), _locality(event.locality)
    yield cost, None
    max_blocks = max(1, limits.kv_slice_bytes // BLOCK_BYTES)
    for start in range(0, max(1, blocks), max_blocks):
        part = hashes[start : start + max_blocks]
        yield EVENT_BYTES + len(part) * BLOCK_BYTES, RemovedEvent(part, event.medium, event.group_idx, locality)


def _locality(raw: msgspec.Raw) -> Any:
    return _ANY.decode(raw) if 0 < len(memoryview(raw)) <= _MAX_ANY_BYTES else None
