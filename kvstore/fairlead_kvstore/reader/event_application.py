"""Applies a stream's outcomes to the block store: the pure middle of the reader.

The reader has sockets and timers. For each message, ``EventSequencer`` returns outcomes and
``apply_outcomes`` applies them to the block store. The indexer applies them in slices, with
``EventApplication``. The changes are written to Redis in one batch;
``replay_from`` is sent to the replay endpoint.

    sequencer, store = EventSequencer(replayable=True), BlockStore(secret=secret)
    store.attach("<pod>/8000/0", "default/qwen3-8b", now)
    outcomes = sequencer.on_live_frame(parse_frame(message))
    found = apply_outcomes(store, "<pod>/8000/0", outcomes, now)
    found.changes           BlocksStored, BlocksRemoved, ...: to be written, in order
    found.replay_from       None, or the number from which a replay is to be requested

The events of one payload in slices, so that a large batch does not occupy the indexer.

A slice has about ``kv_slice_bytes``. A payload of that size or less is decoded at once. Of a larger
one, only the boundaries of its events are read at first, and each event is decoded with its slice.
A usual batch of some slices is applied at once where that is compiled.
An event that is larger than a slice is divided by its blocks. Each part continues after the last
block of the part before, so that the parts mean the same as the event.

Fields of any type can hold a million empty arrays. In a large event they stay undecoded. Extra keys
are decoded block by block, and those of one block have a bound of their own.

Why: 2 MiB of tiny events take 0.9 s. Meanwhile, the indexer read no other engine, wrote nothing and
renewed no lease.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
import xxhash

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import FleetReport
from fairlead_kvstore.errors import EventsError, MalformedEvents, OversizedEvents
from fairlead_kvstore.events.decoder import (
    REFUSED,
    UNKNOWN,
    check_block_count,
    check_event_count,
    decode_event,
    decode_events,
    has_consistent_counts,
    why_left_out,
)
from fairlead_kvstore.events.payloads import (
    CacheEvent,
    ClearedEvent,
    ClearedEventArray,
    EngineHash,
    EventBatch,
    LargeRemovedEvent,
    LargeRemovedEventArray,
    LargeStoredEvent,
    LargeStoredEventArray,
    RawBatch,
    RemovedEvent,
    StoredEvent,
    TokenId,
)
from fairlead_kvstore.events.types import (
    AcceptBatch,
    BatchesLost,
    DuplicateBatch,
    ProcessRestarted,
    SequenceGap,
    StreamOutcome,
)
from fairlead_kvstore.native import SCAN_EVENTS, ScannedBatch

BLOCK_BYTES: Final = 16
"""The cost of a block, besides the bytes of its event: some events have two bytes a block."""
EVENT_BYTES: Final = 16
"""The fixed cost of an event, in bytes."""
_SCANNED_SLICES: Final = 8
"""Slices of a usual batch that is applied at once: its blocks take a fifth of the usual time."""
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_CONTINUED: Final = 1 << 64
"""Makes a parent's hash differ from 0, which means none; only the lower 64 bits count."""
_MAX_EXTRA_KEY_BYTES: Final = 16_384
"""Extra keys of one block of a large event. Digests have 64 characters, and images few a block."""
_RAW: Final = msgspec.msgpack.Decoder(RawBatch)
_MAP_EVENT: Final = msgspec.msgpack.Decoder(LargeStoredEvent | LargeRemovedEvent | ClearedEvent)
_ARRAY_EVENT: Final = msgspec.msgpack.Decoder(LargeStoredEventArray | LargeRemovedEventArray | ClearedEventArray)
_HASHES: Final = msgspec.msgpack.Decoder(list[EngineHash])
_TOKENS: Final = msgspec.msgpack.Decoder(list[TokenId])
_RAW_ITEMS: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_EXTRA_KEYS: Final = msgspec.msgpack.Decoder(list[Any] | None)
_ANY: Final = msgspec.msgpack.Decoder()
_NIL: Final = b"\xc0"
_ARRAY16, _ARRAY32 = 0xDC, 0xDD
_NUMBER_BYTES: Final = {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
"""The length of a number by its first byte; others have one byte."""


def event_slices(payload: bytes, limits: Limits, start: int = 0) -> Iterator[tuple[int, EventBatch]]:
    """Yields the events of a payload in order, in slices with their cost in bytes.

    Raises EventsError, and nothing else, for any bytes: before the first slice, or between two.

    start: the first event, if the payload is larger than a slice.
    """
    if len(payload) > limits.kv_slice_bytes:
        yield from _large_payload_slices(payload, limits, start)
        return
    batch = decode_events(payload, limits)
    blocks = _block_count(batch.events) if len(payload) > limits.kv_slice_bytes // BLOCK_BYTES else 0
    if blocks * BLOCK_BYTES <= limits.kv_slice_bytes:
        yield batch_cost(payload, blocks, limits), batch
        return
    yield 0, EventBatch(batch.wall, (), batch.rank, batch.unknown, batch.refused)
    for event in batch.events:
        for part in _parts(event, limits):
            cost = EVENT_BYTES + _block_count((part,)) * BLOCK_BYTES
            yield cost, EventBatch(batch.wall, (part,), batch.rank)


def batch_cost(payload: bytes, blocks: int, limits: Limits) -> int:
    """Returns the cost in bytes of a payload that is one slice. A small one has few blocks, which
    are not counted.
    """
    return len(payload) + (blocks * BLOCK_BYTES if len(payload) > limits.kv_slice_bytes // BLOCK_BYTES else 0)


def _large_payload_slices(payload: bytes, limits: Limits, start: int) -> Iterator[tuple[int, EventBatch]]:
    raw = _decode_raw(payload, limits)
    wall, rank = raw.ts, raw.data_parallel_rank
    yield limits.kv_slice_bytes, EventBatch(wall, (), rank)  # reading the boundaries takes some ms
    events, counts, cost = list[CacheEvent](), {UNKNOWN: 0, REFUSED: 0}, 0
    for item in raw.events[start:]:
        size = len(memoryview(item))
        is_large = 2 * size > limits.kv_slice_bytes
        if cost and (is_large or cost >= limits.kv_slice_bytes):
            yield cost, EventBatch(wall, events, rank, counts[UNKNOWN], counts[REFUSED])
            events, counts, cost = [], {UNKNOWN: 0, REFUSED: 0}, 0
        if is_large:
            for part_cost, part in _large_event_parts(item, limits):
                left_out = {UNKNOWN: 0, REFUSED: 0, part: 1} if isinstance(part, str) else counts
                found = () if part is None or isinstance(part, str) else (part,)
                yield part_cost, EventBatch(wall, found, rank, left_out[UNKNOWN], left_out[REFUSED])
            continue
        event = decode_event(item, limits)
        cost += size + EVENT_BYTES
        if isinstance(event, str):
            counts[event] += 1
        else:
            events.append(event)
            cost += _block_count((event,)) * BLOCK_BYTES
    if cost:
        yield cost, EventBatch(wall, events, rank, counts[UNKNOWN], counts[REFUSED])


def _decode_raw(payload: bytes, limits: Limits) -> RawBatch:
    """Returns a batch with undecoded events. Raises EventsError.

    Why: their number is read from the bytes first, since two million of them would be decoded in
    one turn.
    """
    if len(payload) > limits.kv_events_bytes:
        text = f"the payload has {len(payload)} bytes, over the limit of {limits.kv_events_bytes}"
        raise OversizedEvents(text, reason="bytes")
    count = None if payload[0] not in (0x92, 0x93) else _array_length(payload, 1 + _NUMBER_BYTES.get(payload[1], 1))
    if count is not None:
        check_event_count(count, limits)
        try:
            return _RAW.decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
    text = "the bytes are no batch [ts, events, rank] of KV events"
    raise MalformedEvents(text, reason="shape", hint="subscribe to the engine's KV events only")


def _array_length(data: bytes | memoryview, at: int = 0) -> int | None:
    """Returns the length of the msgpack array that begins at ``at``; None if there is none."""
    first = data[at] if at < len(data) else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    size = {_ARRAY16: 2, _ARRAY32: 4}.get(first)
    return None if size is None else int.from_bytes(data[at + 1 : at + 1 + size], "big")


# --- large events -----------------------------------------------------------------------------------------------------


def _large_event_parts(item: msgspec.Raw, limits: Limits) -> Iterator[tuple[int, CacheEvent | str | None]]:
    """Yields the parts of a large event with their cost; None where nothing but time has passed.

    A text says that the rest of the event is left out, as ``decode_event`` says it. Raises
    EventsError.
    """
    first = memoryview(item)[0]
    is_array = 0x90 <= first <= 0x9F or first in (_ARRAY16, _ARRAY32)
    decoder: Any = _ARRAY_EVENT if is_array else _MAP_EVENT
    try:
        event = decoder.decode(item)
        if isinstance(event, LargeStoredEvent):
            yield from _stored_parts(event, limits)
        elif isinstance(event, LargeRemovedEvent):
            yield from _removed_parts(event, limits)
        else:
            yield EVENT_BYTES, event
    except (msgspec.MsgspecError, ValueError, RecursionError):
        yield limits.kv_slice_bytes, why_left_out(item, is_array)


def _stored_parts(event: LargeStoredEvent, limits: Limits) -> Iterator[tuple[int, CacheEvent | str | None]]:
    counts = [_array_length(memoryview(field)) for field in (event.block_hashes, event.token_ids, event.extra_keys)]
    blocks, tokens, extras = counts
    reports_extras = bytes(memoryview(event.extra_keys)[:1]) not in (b"", _NIL)
    if (
        blocks is None
        or tokens is None
        or (reports_extras and extras is None)
        or not has_consistent_counts(blocks, event.block_size, tokens, extras, limits)
    ):
        yield limits.kv_slice_bytes, REFUSED
        return
    hashes = _HASHES.decode(event.block_hashes)
    yield limits.kv_slice_bytes, None
    ids = _TOKENS.decode(event.token_ids)
    yield limits.kv_slice_bytes, None
    raw_extras = _RAW_ITEMS.decode(event.extra_keys) if reports_extras else None
    if raw_extras is not None:
        yield limits.kv_slice_bytes, None
    fields = {**msgspec.structs.asdict(event), "locality": _locality(event.locality)}
    del fields["token_ids"]
    start, parent, size = 0, event.parent_block_hash, event.block_size
    while start < blocks:
        stop, cost = _part_end(start, blocks, size, raw_extras, limits)
        keys = None if raw_extras is None else _decode_extras(raw_extras[start:stop])
        if keys is None and raw_extras is not None:
            yield EVENT_BYTES, REFUSED
            return
        fields |= {"block_hashes": hashes[start:stop], "parent_block_hash": parent, "extra_keys": keys}
        yield cost, StoredEvent(token_ids=ids[start * size : stop * size], **fields)
        start, parent = stop, _continued(hashes[stop - 1])


def _removed_parts(event: LargeRemovedEvent, limits: Limits) -> Iterator[tuple[int, CacheEvent | str | None]]:
    count = _array_length(memoryview(event.block_hashes))
    if count is None:
        raise MalformedEvents("a BlockRemoved event cannot be read", reason="removal")
    check_block_count(count, limits)
    hashes = _HASHES.decode(event.block_hashes)
    yield limits.kv_slice_bytes, None
    for part in _parts(RemovedEvent(hashes, event.medium, event.group_idx, _locality(event.locality)), limits):
        yield EVENT_BYTES + _block_count((part,)) * BLOCK_BYTES, part


def _part_end(start: int, blocks: int, size: int, extras: list[msgspec.Raw] | None, limits: Limits) -> tuple[int, int]:
    """Returns the end of the part that begins with the block ``start``, and its cost in bytes."""
    stop, cost = start, EVENT_BYTES
    while stop < blocks and (stop == start or cost < limits.kv_slice_bytes):
        cost += BLOCK_BYTES + size + (0 if extras is None else len(memoryview(extras[stop])))
        stop += 1
    return stop, cost


def _decode_extras(raw: Sequence[msgspec.Raw]) -> list[list[Any] | None] | None:
    """Returns the extra keys of blocks; None if those of a block are too large."""
    if any(len(memoryview(item)) > _MAX_EXTRA_KEY_BYTES for item in raw):
        return None
    return [_EXTRA_KEYS.decode(item) for item in raw]


def _locality(raw: msgspec.Raw) -> Any:
    """Returns the locality of an event. One that is too long is no text that has a meaning."""
    view = memoryview(raw)
    return _ANY.decode(raw) if 0 < len(view) <= _MAX_EXTRA_KEY_BYTES else None


# --- parts of decoded events -------------------------------------------------------------------------------------------


def _parts(event: CacheEvent, limits: Limits) -> Iterator[CacheEvent]:
    """Yields a decoded event in parts of about a slice each, by its blocks."""
    max_blocks = max(1, limits.kv_slice_bytes // BLOCK_BYTES)
    if isinstance(event, ClearedEvent) or len(event.block_hashes) <= max_blocks:
        yield event
        return
    hashes, keys = event.block_hashes, None if isinstance(event, RemovedEvent) else event.extra_keys
    for start in range(0, len(hashes), max_blocks):
        part: CacheEvent = msgspec.structs.replace(event, block_hashes=hashes[start : start + max_blocks])
        if isinstance(event, StoredEvent) and isinstance(part, StoredEvent):
            size = event.block_size
            part.token_ids = event.token_ids[start * size : (start + max_blocks) * size]
            part.extra_keys = None if keys is None else keys[start : start + max_blocks]
            if start:
                part.parent_block_hash = _continued(hashes[start - 1])
        yield part


def _continued(last: EngineHash) -> int:
    """Returns the parent's hash of a part that continues after the block ``last``."""
    value = last & _MASK if isinstance(last, int) else xxhash.xxh3_64_intdigest(last)
    return value | _CONTINUED


def _block_count(events: Sequence[CacheEvent]) -> int:
    return sum([0 if isinstance(event, ClearedEvent) else len(event.block_hashes) for event in events])


_LIMITS: Final = Limits()
_OUTCOME_BYTES: Final = 16
"""The fixed cost of an outcome, in bytes."""


class AppliedEvents:
    """The result of applying outcomes: changes in order, and counts.

    cost: of the applied events and of what they caused, in bytes.
    replay_from: the number from which to request a replay; None: no replay is needed.
    wall: the engine's clock at the last batch, in Unix seconds; None without a batch.
    gaps: number of gaps whose end is known.
    lost: number of gaps that will not be filled.
    unreadable: the reason for each unreadable payload.
    """

    def __init__(self, changes: list[Change]) -> None:
        self.changes = changes
        self.cost = 0
        self.replay_from: int | None = None
        self.wall: float | None = None
        self.batches = 0
        self.duplicates = 0
        self.gaps = 0
        self.lost = 0
        self.restarts = 0
        self.unreadable: tuple[str, ...] = ()


class EventApplication:
    """The outcomes of one stream that are applied to its instance, a slice at a time.

    A batch of which a part is applied is completed by the next calls of ``run``, before anything
    later. Meanwhile, the position of the stream is ahead of the blocks (``is_busy``).

    waiting_bytes: size of the payloads that are not applied yet.
    """

    def __init__(self, store: BlockStore, instance: str, limits: Limits = _LIMITS) -> None:
        self._store = store
        self._instance = instance
        self._limits = limits
        self._waiting: deque[StreamOutcome | FleetReport] = deque()
        self._steps: Iterator[int] | None = None
        self._found = AppliedEvents([])
        self._changes: list[Change] = []
        self.waiting_bytes = 0

    @property
    def is_busy(self) -> bool:
        """Whether outcomes wait, or a part of a batch."""
        return self._steps is not None or bool(self._waiting)

    def add(self, outcomes: Iterable[StreamOutcome | FleetReport]) -> None:
        """Adds outcomes behind those that wait."""
        for outcome in outcomes:
            self._waiting.append(outcome)
            if isinstance(outcome, AcceptBatch):
                self.waiting_bytes += len(outcome.payload)

    def run(self, now: float, max_blocks: int) -> AppliedEvents:
        """Applies what waits, up to about ``max_blocks``, and returns the result of this slice."""
        found = self._found = AppliedEvents([])
        spent = 0
        while spent < max_blocks:
            if self._steps is None:
                if not self._waiting:
                    break
                outcome = self._waiting.popleft()
                if SCAN_EVENTS is not None and isinstance(outcome, AcceptBatch):
                    scanned = self._scan(outcome.payload)
                    if scanned is not None:
                        self._steps = self._apply_scanned(outcome.payload, scanned, now)
                        spent += batch_cost(outcome.payload, scanned[2], self._limits)
                        if self._steps is None:
                            spent += _OUTCOME_BYTES
                        continue
                self._steps = self._outcome_steps(outcome, now)
            cost = next(self._steps, None)
            if cost is None:
                self._steps = None
                cost = _OUTCOME_BYTES
            spent += cost
        found.changes += self._changes
        self._changes.clear()
        found.cost = spent
        return found

    def _scan(self, payload: bytes) -> ScannedBatch | None:
        """Returns the events of a usual batch of a few slices; None for any other."""
        limits = self._limits
        max_bytes = limits.kv_slice_bytes * _SCANNED_SLICES
        if SCAN_EVENTS is None or len(payload) > max_bytes:
            return None
        found = SCAN_EVENTS(payload, limits.kv_events_in_batch, limits.kv_event_blocks, limits.kv_event_block_tokens)
        return found if found is not None and found[2] * BLOCK_BYTES <= max_bytes else None

    def _apply_scanned(self, payload: bytes, scanned: ScannedBatch, now: float) -> Iterator[int] | None:
        """Applies a usual batch at once. Returns the steps of its events that have further effects;
        None when there are none.
        """
        self.waiting_bytes -= len(payload)
        done = self._store.apply_scanned(self._instance, scanned, now, self._changes)
        self._found.wall = scanned[0]
        self._found.batches += 1
        if done == len(scanned[3]):
            return None
        return self._rest_steps(payload, done, now)

    def _rest_steps(self, payload: bytes, start: int, now: float) -> Iterator[int]:
        if len(payload) > self._limits.kv_slice_bytes:
            for cost, rest in event_slices(payload, self._limits, start):
                yield from self._store.apply(self._instance, rest, now, self._changes)
                yield cost
            return
        batch = decode_events(payload, self._limits)
        rest = EventBatch(batch.wall, batch.events[start:], batch.rank)
        yield from self._store.apply(self._instance, rest, now, self._changes)

    def clear(self) -> None:
        """Drops what waits."""
        self._waiting.clear()
        self._steps, self.waiting_bytes = None, 0
        self._changes.clear()

    def _outcome_steps(self, outcome: StreamOutcome | FleetReport, now: float) -> Iterator[int]:
        if isinstance(outcome, AcceptBatch):
            yield from self._batch_steps(outcome, now)
        elif isinstance(outcome, DuplicateBatch):
            self._found.duplicates += 1
        elif isinstance(outcome, SequenceGap):
            self._found.gaps += outcome.last is not None
            self._found.replay_from = outcome.ask
        else:
            self._found.lost += isinstance(outcome, BatchesLost)
            self._found.restarts += isinstance(outcome, ProcessRestarted)
            yield from self._store.apply(self._instance, outcome, now, self._changes)

    def _batch_steps(self, outcome: AcceptBatch, now: float) -> Iterator[int]:
        """Applies one batch; one that cannot be read to its end counts as lost."""
        store, instance, out = self._store, self._instance, self._changes
        self.waiting_bytes -= len(outcome.payload)
        wall: float | None = None
        try:
            for cost, batch in event_slices(outcome.payload, self._limits):
                wall = batch.wall
                yield from store.apply(instance, batch, now, out)
                yield cost
        except EventsError as error:
            self._found.unreadable += (error.reason,)
            lost = BatchesLost(outcome.number, outcome.number, f"a batch cannot be read: {error.reason}")
            yield from store.apply(instance, lost, now, out)
        else:
            self._found.wall = wall
        self._found.batches += 1


def apply_outcomes(
    store: BlockStore, instance: str, outcomes: Iterable[StreamOutcome], now: float, limits: Limits = _LIMITS
) -> AppliedEvents:
    """Applies a stream's outcomes to its instance in the block store, and returns the changes.

    A payload that cannot be read counts as lost.
    """
    application = EventApplication(store, instance, limits)
    application.add(outcomes)
    return application.run(now, sys.maxsize)
