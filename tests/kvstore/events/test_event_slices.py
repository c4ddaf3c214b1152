"""Large batches in slices: the same blocks as at once, and no slice much larger than its limit."""

import struct
import tracemalloc
from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
import pytest

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.errors import EventsError, MalformedEvents, OversizedEvents
from fairlead_kvstore.events.decoder import event_slices
from fairlead_kvstore.events.payloads import EventBatch, RemovedEvent, StoredEvent
from fairlead_testing.kvstore.block_store import apply_batch, decode_events, instance_state

LIMITS = Limits()
SMALL = Limits(kv_slice_bytes=128)
_encode = msgspec.msgpack.encode


def payload_of(events: Sequence[Any]) -> bytes:
    return bytes(_encode([1.0, list(events), 0]))


def array_header(items: int) -> bytes:
    return b"\xdd" + struct.pack(">I", items)


def batch_with(event: bytes) -> bytes:
    return b"\x93\xcb" + struct.pack(">d", 1.0) + b"\x91" + event + b"\x00"


def random_events(draw: Random) -> list[Any]:
    """Returns events of every kind and size, as arrays or as maps."""
    events: list[Any] = []
    arrays, last = draw.random() < 0.5, None
    for _ in range(draw.randrange(1, 12)):
        blocks = draw.choice((1, 2, 7, 40, 300))
        first, size, kind = draw.randrange(1, 500), draw.choice((1, 4)), draw.randrange(8)
        hashes = [_hash(number) for number in range(first, first + blocks)]
        extras = [["salt"] if number % 50 == 1 else None for number in range(blocks)]
        tokens = [draw.randrange(9) for _ in range(blocks * size)]
        if kind < 5:
            parent = draw.choice((None, last))
            event = ["BlockStored", hashes, parent, tokens, size, None, draw.choice(("GPU", "CPU")), None, extras]
            last = hashes[-1]
        else:  # what follows may have lost its parent: no event continues from before
            last = None
            event = ["BlockRemoved", hashes, "GPU"] if kind < 7 else ["AllBlocksCleared"]
        events.append(event if arrays else _as_map(event))
    return events


def _hash(number: int) -> int | bytes:
    return 0 if number == 7 else number if number % 3 else number.to_bytes(32, "big")


def _as_map(event: list[Any]) -> dict[str, Any]:
    names = ["block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"]
    names = [*names, "extra_keys"] if event[0] == "BlockStored" else ["block_hashes", "medium"]
    return {"type": event[0], **dict(zip(names, event[1:], strict=False))}


@pytest.mark.parametrize("seed", range(40))
def test_slices_have_the_effect_of_the_whole_batch(seed: int) -> None:
    draw = Random(seed)
    whole, sliced = BlockStore(), BlockStore()
    for store in (whole, sliced):
        store.attach("i", "default/tiny", 0.0)
    for _ in range(6):
        payload = payload_of(random_events(draw))
        apply_batch(whole, "i", decode_events(payload), 1.0)
        for _, batch in event_slices(payload, SMALL):
            apply_batch(sliced, "i", batch, 1.0)
    assert sorted(sliced.content("i")) == sorted(whole.content("i"))
    assert instance_state(sliced, "i").counts == instance_state(whole, "i").counts
    assert instance_state(sliced, "i").orphans == instance_state(whole, "i").orphans


def test_no_slice_has_many_more_blocks_than_the_limit_allows() -> None:
    blocks = 131_072
    one_event = b"\x95\xabBlockStored" + _encode(list(range(1, blocks + 1))) + b"\xc0"
    one_event += array_header(blocks) + b"\x01" * blocks + b"\x01"
    tiny = payload_of([["BlockStored", [number], None, [1], 1] for number in range(1, 20_000)])
    removed = payload_of([["BlockRemoved", list(range(100))] for _ in range(160)])
    for payload in (batch_with(one_event), tiny, removed):
        sizes = [sum(len(event.block_hashes) for event in batch.events) for _, batch in event_slices(payload, LIMITS)]  # type: ignore[union-attr]
        assert max(sizes) <= LIMITS.kv_slice_bytes // 16
        assert sum(sizes) in (blocks, 19_999, 16_000)


def test_two_million_events_are_refused_before_they_are_decoded() -> None:
    count = 2_000_000
    payload = b"\x92\xcb" + struct.pack(">d", 1.0) + array_header(count) + b"\x01" * count
    with pytest.raises(OversizedEvents, match="2000000 events"), _no_memory(1_000_000):
        list(event_slices(payload, LIMITS))


@pytest.mark.parametrize("field", ["locality", "later"])
def test_million_nested_arrays_of_an_event_are_not_built(field: str) -> None:
    count = 2_000_000
    event = b"\x83\xa4type\xacBlockRemoved\xacblock_hashes\x91\x01"
    event += bytes([0xA0 + len(field)]) + field.encode() + array_header(count) + b"\x90" * count
    with _no_memory(8_000_000):
        batches = [batch for _, batch in event_slices(batch_with(event), LIMITS)]
    assert [event for batch in batches for event in batch.events] == [RemovedEvent([1])]


def test_extra_keys_of_a_block_that_are_far_too_large_refuse_the_event() -> None:
    event = (
        b"\x99\xabBlockStored\x91\x01\xc0\x91\x01\x01\xc0\xc0\xc0\x91" + array_header(2_000_000) + b"\x90" * 2_000_000
    )
    with _no_memory(8_000_000):
        batches = [batch for _, batch in event_slices(batch_with(event), LIMITS)]
    assert (sum(batch.refused for batch in batches), [item for batch in batches for item in batch.events]) == (1, [])


def test_unreadable_removal_within_a_large_batch_ends_it() -> None:
    events: list[Any] = [["BlockStored", [number], None, [1], 1] for number in range(1, 2_000)]
    count = 0
    slices = event_slices(payload_of([*events, ["BlockRemoved", 7]]), LIMITS)
    while count < 1_000:
        count += len(next(slices)[1].events)
    with pytest.raises(MalformedEvents):
        list(slices)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_payloads_raise_only_errors_of_events(seed: int) -> None:
    draw = Random(seed)
    data = bytearray(payload_of(random_events(draw)))
    for _ in range(draw.randrange(1, 6)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    try:
        for cost, _ in event_slices(bytes(data), SMALL):
            assert cost >= 0
    except EventsError:
        pass


def test_part_after_a_block_with_the_hash_zero_continues_its_chain() -> None:
    event = ["BlockStored", [5, 0, 6, 8], None, [1, 2, 3, 4], 1]
    (only,) = [batch for _, batch in event_slices(payload_of([event]), LIMITS)]
    parts = [
        item
        for _, batch in event_slices(payload_of([event]), Limits(kv_slice_bytes=32))
        for item in batch.events
        if isinstance(item, StoredEvent)
    ]
    assert (len(parts) > 1, len(only.events)) == (True, 1)
    assert all(part.parent_block_hash for part in parts[1:])


class _no_memory:  # noqa: N801  # used as a statement
    """Asserts that less than ``most`` bytes are allocated at a time."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __enter__(self) -> None:
        tracemalloc.start()

    def __exit__(self, *_: object) -> None:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < self.most


def test_orphan_that_follows_itself_is_looked_at_once() -> None:
    store = BlockStore()
    store.attach("i", "default/tiny", 0.0)
    salted = StoredEvent([1], None, [1], 1, extra_keys=[None])
    # blocks of a slower tier cannot be named, so that those after them wait again
    unnamed = StoredEvent([50], None, [1], 1, medium="CPU")
    followers = [StoredEvent([51], 50, [2], 1, medium="CPU"), StoredEvent([60], 60, [2], 1)]
    for event in (salted, *followers, unnamed, salted):
        apply_batch(store, "i", EventBatch(1.0, [event]), 1.0)
    assert instance_state(store, "i").orphans == 2
