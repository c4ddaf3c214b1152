"""Slices of an indexer's work while one engine is hostile.

Each attack is a batch of KV events that took up to several seconds at once. It is applied in
slices, as the indexer does it. The longest slice counts, in CPU seconds of the thread: other
processes of the machine lengthen a slice, and are no part of it. Of several repeats the least
counts.
"""

import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.payloads import EventBatch, StoredEvent
from fairlead_kvstore.events.types import AcceptBatch
from fairlead_kvstore.reader.event_application import EventApplication

BLOCKS = 200_000
"""The blocks that the engine has before it attacks, where that matters."""
_encode = msgspec.msgpack.encode
_SPARE_BYTES = 64


def measure(repeats: int) -> dict[str, float]:
    """Returns the longest slice in CPU seconds, by attack."""
    process_tuning.relax_gc()  # as the indexer does
    limits = Limits(kv_blocks_per_instance=BLOCKS)
    return {name: min(_longest_slice(attack, limits) for _ in range(repeats)) for name, attack in ATTACKS.items()}


def _longest_slice(attack: Callable[[BlockStore, Limits], bytes], limits: Limits) -> float:
    store = BlockStore(limits=limits)
    store.attach("i", "default/tiny", 0.0)
    application = EventApplication(store, "i", limits)
    application.add([AcceptBatch(0, attack(store, limits))])
    longest = 0.0
    while application.is_busy:
        begun = time.thread_time()
        application.run(100.0, limits.kv_slice_bytes)
        longest = max(longest, time.thread_time() - begun)
    return longest


def _fill(store: BlockStore, **more: Any) -> None:
    """Stores one chain of ``BLOCKS`` blocks, less a few."""
    step = 20_000
    for start in range(0, BLOCKS - step, step):
        hashes: list[int | bytes] = list(range(start + 1, start + step + 1))
        store.apply("i", EventBatch(0.0, [StoredEvent(hashes, start or None, [start] * step, 1, **more)]), 0.0)


def _batch(*events: Any) -> bytes:
    return bytes(_encode([1.0, events, 0]))


def _tiny_events(store: BlockStore, limits: Limits) -> bytes:
    events, size, number = list[Any](), 0, 0
    while size < limits.kv_events_bytes - _SPARE_BYTES - 32 and number < limits.kv_events_in_batch:
        number += 1
        events.append(["BlockStored", [number], number - 1 or None, [1], 1])
        size += len(_encode(events[-1]))
    return _batch(*events)


def _clears(store: BlockStore, limits: Limits) -> bytes:
    return _batch(*[["AllBlocksCleared"]] * (limits.kv_events_bytes // 20))


def _nested_event(store: BlockStore, limits: Limits) -> bytes:
    count = limits.kv_events_bytes - 256
    event = b"\x83\xa4type\xacBlockRemoved\xacblock_hashes\x91\x01\xa8locality\xdd" + struct.pack(">I", count)
    return b"\x93\xcb" + struct.pack(">d", 1.0) + b"\x91" + event + b"\x90" * count + b"\x00"


def _large_event(store: BlockStore, limits: Limits) -> bytes:
    blocks = limits.kv_event_blocks
    return _batch(["BlockStored", list(range(1, blocks + 1)), None, [1] * blocks, 1])


def _evictions(store: BlockStore, limits: Limits) -> bytes:
    _fill(store)
    hashes = list(range(10**9, 10**9 + 100_000))
    return _batch(["BlockStored", hashes, None, [1] * len(hashes), 1])


def _orphans(store: BlockStore, limits: Limits) -> bytes:
    waiting = limits.kv_orphans_per_instance
    children = [StoredEvent([number], 1, [number], 1) for number in range(2, waiting + 2)]
    store.apply("i", EventBatch(0.0, children), 0.0)
    return _batch(["BlockStored", [1], None, [1], 1])


def _long_chain(store: BlockStore, limits: Limits) -> bytes:
    _fill(store)
    return _batch(["BlockStored", [10**9], BLOCKS - 20_000, [1], 1])


def _reload(store: BlockStore, limits: Limits) -> bytes:
    _fill(store, lora_id=1, lora_name="a")
    return _batch(["BlockStored", [10**9], None, [1], 1, 2, "GPU", "a"])


def _clear_of_a_tier(store: BlockStore, limits: Limits) -> bytes:
    _fill(store, medium="disk")
    return _batch(["AllBlocksCleared", "disk"])


ATTACKS: Mapping[str, Callable[[BlockStore, Limits], bytes]] = {
    "2 MiB of tiny events": _tiny_events,
    "2 MiB of clears": _clears,
    "one event with two million nested arrays": _nested_event,
    "one event with 131,072 blocks": _large_event,
    "evictions of 100,000 blocks": _evictions,
    "32,768 blocks with one parent": _orphans,
    "a chain of 180,000 blocks": _long_chain,
    "reload of an adapter with 180,000 blocks": _reload,
    "clear of a tier with 180,000 blocks": _clear_of_a_tier,
}
"""Functions of a block store, which they prepare, that return the payload of a batch."""
