"""Decodes payloads of KV events in both encodings, within limits and with one kind of error.

A payload whose events are all known, the usual case, is decoded at once to typed values, in some
microseconds per event. If that fails, the events are decoded one by one, so that a newer engine's
additions do no harm:

- An event of an unknown kind is left out and counted (``unknown``).
- An inconsistent stored event is left out and counted (``refused``): it costs a cache hit.
- A removed or cleared event that cannot be read makes the whole batch unreadable. A missed removal
  would leave a ghost, so the reader must treat such a batch as lost, see ``stream_sequencer.py``.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from fairlead.limits import Limits
from fairlead_kvstore.errors import MalformedEvents, OversizedEvents
from fairlead_kvstore.events.payloads import (
    ArrayBatch,
    CacheEvent,
    ClearedEvent,
    ClearedEventArray,
    EventBatch,
    MapBatch,
    RawBatch,
    RemovedEvent,
    RemovedEventArray,
    StoredEvent,
    StoredEventArray,
    TaggedEvent,
    TaggedEventArray,
)

_LIMITS: Final = Limits()
_STORED: Final = "BlockStored"
_KNOWN: Final = (_STORED, "BlockRemoved", "AllBlocksCleared")
_FLOAT64: Final = 0xCB
UNKNOWN: Final = "unknown"
"""An event that is left out because this release does not know its kind."""
REFUSED: Final = "refused"
"""A stored event that is left out because it is inconsistent."""
_MAPS: Final = msgspec.msgpack.Decoder(MapBatch)
_ARRAYS: Final = msgspec.msgpack.Decoder(ArrayBatch)
_RAW: Final = msgspec.msgpack.Decoder(RawBatch)
_MAP_EVENT: Final = msgspec.msgpack.Decoder(StoredEvent | RemovedEvent | ClearedEvent)
_ARRAY_EVENT: Final = msgspec.msgpack.Decoder(StoredEventArray | RemovedEventArray | ClearedEventArray)
_MAP_TAG: Final = msgspec.msgpack.Decoder(TaggedEvent)
_ARRAY_TAG: Final = msgspec.msgpack.Decoder(TaggedEventArray)


def decode_events(payload: bytes, limits: Limits = _LIMITS) -> EventBatch:
    """Returns the events of one payload. Raises EventsError, and nothing else, for any bytes."""
    if len(payload) > limits.kv_events_bytes:
        raise OversizedEvents(
            f"the payload has {len(payload)} bytes, over the limit of {limits.kv_events_bytes}", reason="bytes"
        )
    try:
        raw = (_ARRAYS if _has_array_events(payload) else _MAPS).decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _one_by_one(payload, limits)
    events: Sequence[CacheEvent] = raw.events
    check_event_count(len(events), limits)
    refused = 0
    for event in events:
        if isinstance(event, StoredEvent):
            refused += not _is_consistent(event, limits)
        elif isinstance(event, RemovedEvent):
            check_block_count(len(event.block_hashes), limits)
    if refused:
        events = [event for event in events if not isinstance(event, StoredEvent) or _is_consistent(event, limits)]
    return EventBatch(raw.ts, events, raw.data_parallel_rank, 0, refused)


def _has_array_events(payload: bytes) -> bool:
    """Returns whether the first event is an array.

    It is a guess from the first bytes; a wrong one only costs time.
    """
    if len(payload) < 16 or payload[1] != _FLOAT64:
        return False
    head = payload[10]
    first = payload[11 if head < 0xDC else 13 if head == 0xDC else 15]
    return 0x90 <= first <= 0x9F or first in (0xDC, 0xDD)


def _one_by_one(payload: bytes, limits: Limits) -> EventBatch:
    try:
        raw = _RAW.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        text = "the bytes are no batch [ts, events, rank] of KV events"
        raise MalformedEvents(text, reason="shape", hint="subscribe to the engine's KV events only") from None
    check_event_count(len(raw.events), limits)
    events: list[CacheEvent] = []
    unknown = refused = 0
    for item in raw.events:
        event = decode_event(item, limits)
        if isinstance(event, str):
            unknown += event == UNKNOWN
            refused += event == REFUSED
        else:
            events.append(event)
    return EventBatch(raw.ts, events, raw.data_parallel_rank, unknown, refused)


def decode_event(item: msgspec.Raw, limits: Limits) -> CacheEvent | str:
    """Returns an event; ``UNKNOWN`` or ``REFUSED`` for one that is to be left out.

    Raises EventsError for an unreadable removal or clear, and for an event without a kind.
    """
    first = memoryview(item)[0]
    arrays = 0x90 <= first <= 0x9F or first in (0xDC, 0xDD)
    whole: Any = _ARRAY_EVENT if arrays else _MAP_EVENT
    try:
        event: CacheEvent = whole.decode(item)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return why_left_out(item, arrays)
    if isinstance(event, StoredEvent):
        return event if _is_consistent(event, limits) else REFUSED
    if isinstance(event, RemovedEvent):
        check_block_count(len(event.block_hashes), limits)
    return event


def why_left_out(item: msgspec.Raw, arrays: bool) -> str:
    """Returns ``UNKNOWN`` or ``REFUSED`` for an event that cannot be read. Raises MalformedEvents
    if it may not be left out.

    arrays: whether the event is an array.
    """
    tag: Any = _ARRAY_TAG if arrays else _MAP_TAG
    try:
        kind: str = tag.decode(item).type
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedEvents("an event has no kind", reason="kind") from None
    if kind in _KNOWN and kind != _STORED:
        raise MalformedEvents(f"a {kind} event cannot be read", reason="removal")
    return REFUSED if kind == _STORED else UNKNOWN


def check_event_count(events: int, limits: Limits) -> None:
    """Raises OversizedEvents if a batch has too many events."""
    if events > limits.kv_events_in_batch:
        text = f"the batch has {events} events, over the limit of {limits.kv_events_in_batch}"
        raise OversizedEvents(text, reason="events")


def check_block_count(blocks: int, limits: Limits) -> None:
    """Raises OversizedEvents if one event removes too many blocks."""
    if blocks > limits.kv_event_blocks:
        text = f"one event removes {blocks} blocks, over the limit of {limits.kv_event_blocks}"
        raise OversizedEvents(text, reason="blocks")


def _is_consistent(event: StoredEvent, limits: Limits) -> bool:
    extras = None if event.extra_keys is None else len(event.extra_keys)
    return has_consistent_counts(len(event.block_hashes), event.block_size, len(event.token_ids), extras, limits)


def has_consistent_counts(blocks: int, block_size: int, tokens: int, extras: int | None, limits: Limits) -> bool:
    """Returns whether each block has its tokens and any extra keys, within the limits."""
    if tokens != blocks * block_size or not 0 < block_size <= limits.kv_event_block_tokens:
        return False
    return blocks <= limits.kv_event_blocks and extras in (None, blocks)
