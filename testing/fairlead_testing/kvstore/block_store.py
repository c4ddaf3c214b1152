"""Events of an engine with six known blocks, and a block store that takes them at once."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.block_hash import ExtraKeys, block_hashes, chain_root
from fairlead_kvstore.blockstore.block_table import BlockTable
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.snapshot import RowParts, table_steps
from fairlead_kvstore.blockstore.storage_tiers import StorageTier, shared_store_id
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import InstanceSnapshot
from fairlead_kvstore.events.decoder import event_slices
from fairlead_kvstore.events.payloads import CacheEvent, EventBatch, RemovedEvent, StoredEvent

MODEL: Final = "default/tiny"
TOKENS: Final = list(range(100, 112))
BLOCK_HASHES: Final = block_hashes(chain_root(MODEL), TOKENS, 2)
"""Six blocks of two tokens."""


def block_extras(
    blocks: int, block_size: int, *, salt: str | None = None, images: Sequence[tuple[str, int, int]] = ()
) -> dict[int, ExtraKeys]:
    """Returns the extra keys that an engine reports for a prompt, by the number of the block.

    images: (identifier, first token, tokens), in order. An image appears on every block that it
    touches, with its distance from the block's start; the salt appears on the first block.
    """
    found: dict[int, ExtraKeys] = {}
    for index in range(blocks):
        start = index * block_size
        keys: ExtraKeys = [
            [name, first - start]
            for name, first, length in images
            if first < start + block_size and first + length > start
        ]
        if salt is not None and not index:
            keys.append(salt)
        if keys:
            found[index] = keys
    return found


def stored_event(first: int, last: int, *, base: int = 1000, **more: Any) -> StoredEvent:
    """Returns an event that stores the blocks ``first`` to ``last`` of ``TOKENS``.

    The engine's hash of a block is ``base`` + its number.
    """
    fields: dict[str, Any] = {"medium": "GPU", "extra_keys": [None] * (last + 1 - first), "group_idx": 0, **more}
    parent = base + first - 1 if first else None
    handles = [base + number for number in range(first, last + 1)]
    return StoredEvent(list(handles), parent, TOKENS[2 * first : 2 * last + 2], 2, **fields)


def removed_event(*numbers: int, base: int = 1000, medium: str = "GPU") -> RemovedEvent:
    return RemovedEvent([base + number for number in numbers], medium, 0)


def decode_events(payload: bytes, limits: Limits | None = None) -> EventBatch:
    """Returns the events of one payload, none of them divided. Raises EventsError."""
    slices = event_slices(payload, replace(limits or Limits(), kv_slice_bytes=sys.maxsize))
    (batch,) = [batch for _, batch in slices]
    return batch


def apply_batch(store: BlockStore, instance: str, batch: EventBatch, now: float) -> list[Change]:
    return store.apply_at_once(instance, batch, now)


def restored_table(snapshot: InstanceSnapshot, rows: RowParts, wall: float) -> BlockTable:
    """Returns the table of a snapshot at once."""
    found: list[BlockTable] = []

    def restore() -> Iterator[None]:
        found.append((yield from table_steps(snapshot, rows, wall)))

    for _ in restore():
        pass
    return found[0]


def restore_snapshot(
    store: BlockStore, instance: str, snapshot: InstanceSnapshot, rows: RowParts, wall: float, now: float
) -> list[Change]:
    """Restores a snapshot at once, evicts what is above the bounds, and returns the changes."""
    out = store.restore_table(instance, snapshot, restored_table(snapshot, rows, wall), wall, now)
    while store.evict_some(now):
        pass
    return out


@dataclass(frozen=True, slots=True)
class InstanceState:
    """The state of one instance in a block store. ``counts`` are those of its model."""

    epoch: int
    complete: bool
    reason: str
    since: float
    blocks: int
    orphans: int
    block_size: int | None
    hybrid: bool
    evicted_age_seconds: float | None
    counts: Counter[str]


def instance_state(store: BlockStore, instance: str) -> InstanceState:
    """Returns the present state of an instance."""
    item = store.instance(instance)
    return InstanceState(
        item.epoch,
        *item.completeness.mark,
        blocks=len(item),
        orphans=item.orphan_count,
        block_size=item.block_size,
        hybrid=item.hybrid,
        evicted_age_seconds=item.evicted_age_seconds,
        counts=Counter(store.counts[item.model_key]),
    )


def cached_depths(store: BlockStore, instance: str, hashes: Sequence[int]) -> dict[StorageTier, int]:
    """Returns, for each tier, how many blocks from the start are cached in it or a faster tier."""
    shared = shared_store_id(store.instance(instance).model_key)
    remote = store.content(shared) if shared in store else ()
    cached = {*store.content(instance), *((block_hash, StorageTier.REMOTE) for block_hash, _ in remote)}
    found, depth = dict[StorageTier, int](), 0
    for tier in StorageTier:
        while depth < len(hashes) and any(
            (hashes[depth], faster) in cached for faster in StorageTier if faster <= tier
        ):
            depth += 1
        found[tier] = depth
    return found


def cached_tokens(blocks: int, prompt_tokens: int, block_size: int, *, slower: int = 0) -> int:
    """Returns the cached tokens that an engine reports for a prompt with ``blocks`` cached in the
    GPU.

    slower: blocks that are cached when slower tiers count; 0 for an engine without them.

    Whole blocks count. The last token must be computed, so a block that ends with it is no hit in
    the GPU's cache. It is a hit in vLLM's own CPU tier, which then loads the whole prompt.
    """
    found = max(0, min(blocks, (prompt_tokens - 1) // block_size))
    return max(found, min(slower, prompt_tokens // block_size)) * block_size


class SingleInstanceStore:
    """A block store with a clock and one attached instance."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.store = BlockStore(limits=limits or Limits())
        self.now = 0.0
        self.store.attach("i", MODEL, self.now)

    def apply(self, *events: CacheEvent, seconds: float = 1.0, instance: str = "i") -> list[Change]:
        self.now += seconds
        return apply_batch(self.store, instance, EventBatch(0.0, events), self.now)

    def depths(self, own: list[int] = BLOCK_HASHES, instance: str = "i") -> tuple[int, ...]:
        found = cached_depths(self.store, instance, own)
        return tuple(found[tier] for tier in StorageTier)

    @property
    def counts(self) -> Counter[str]:
        return self.store.counts[MODEL]


def store_with(*events: CacheEvent, limits: Limits | None = None, seconds: float = 1.0) -> SingleInstanceStore:
    """Returns a store whose instance has these events."""
    index = SingleInstanceStore(limits)
    index.apply(*events, seconds=seconds)
    return index


def change_summary(told: list[Change]) -> list[tuple[str, list[int]]]:
    place = {own: number for number, own in enumerate(BLOCK_HASHES)}
    return [(type(one).__name__, [place.get(own, -1) for own in getattr(one, "hashes", [])]) for one in told]
