"""The blocks of one event as a run that is added to a table, or waits until its parent is known.

A reader that joins late, or loses a batch, receives blocks that follow one it has never seen. Their
content depends on all blocks before them, so they cannot be named yet. Other indexes drop them, and
every block that follows them stays invisible until the engine stores it again. Here they wait with
their tokens, by the handle of the parent. When a replay or a later request reports the parent, they
are linked, and then the blocks that wait for them. They are bounded: the oldest are dropped first.

A waiting block may be removed before its parent arrives. The removal is noted and applied when the
block is linked.
"""

from array import array
from collections.abc import Iterator
from typing import Final

import xxhash

from fairlead_kvstore.blockstore.block_hash import (
    engine_hash,
    extra_key_bytes,
    hash_with_extras,
    parent_hash,
    token_bytes,
)
from fairlead_kvstore.blockstore.block_table import MAX_COPIES, TIER_SHIFT, BlockTable
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, Change
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.types import LoadNumber
from fairlead_kvstore.events.payloads import StoredEvent

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
HANDLE_BYTES: Final = 8
_HASH: Final = xxhash.xxh3_64_intdigest


class PendingRun:
    """The blocks of one event, ``handles`` after ``parent`` (-1: a prompt's start).

    data: their token ids.
    extras: their extra keys as bytes; None if the engine does not report them.
    load: name of an adapter, and the engine's number of its load; None for the base model.
    """

    def __init__(
        self,
        parent: int,
        handles: list[int],
        data: bytes,
        extras: list[bytes | None] | None,
        tier: StorageTier,
        tick: int,
    ) -> None:
        self.parent = parent
        self.handles = handles
        self.data = data
        self.extras = extras
        self.tier = tier
        self.tick = tick
        self.load: tuple[str, LoadNumber] | None = None
        self._width = max(1, len(data) // max(1, len(handles)))  # bytes of token ids for each block

    @property
    def size(self) -> int:
        """The number of bytes of tokens and extra keys."""
        return len(self.data) + (sum(len(keys) for keys in self.extras if keys) if self.extras else 0)

    def block_hash(self, number: int, before: int) -> int:
        """Returns the hash of one block, from that of the block before it."""
        at = number * self._width
        block_hash = _HASH(self.data[at : at + self._width], before)
        if self.extras is not None and (keys := self.extras[number]) is not None:
            block_hash = hash_with_extras(block_hash, keys)
        return block_hash

    def add_to(self, table: BlockTable, start: tuple[int, int], index: int, known_only: bool) -> list[int]:
        """Adds one copy of each block to a table, and returns the hashes of new blocks.

        start: hash and depth of the block before the run.
        index: the adapter's, see ``AdapterLoads.indexes``.
        known_only: blocks with an unknown handle cannot be named and are left out.
        """
        new, (block_hash, depth), first = list[int](), start, 0
        if not known_only and (self.extras is None or not any(self.extras)):
            run = array("Q", self.handles).tobytes(), self.data, self._width
            first, block_hash = table.add_run(start, run, index, TIER_SHIFT[self.tier], self.tick, new)
        self.add_from(first, table, (block_hash, depth + first), index, known_only, new)
        return new

    def add_from(
        self,
        first: int,
        table: BlockTable,
        start: tuple[int, int],
        index: int,
        known_only: bool,
        new: list[int],
    ) -> None:
        """Adds the blocks from number ``first`` on, like ``add_to``. Takes some 2 µs a block.

        start: hash and depth of the block before the first one.
        new: gets the hashes of new blocks.
        """
        block_hash, depth = start
        by_handle, block_hashes, counts, ticks = table.by_handle, table.block_hashes, table.counts, table.ticks
        shift, tick = TIER_SHIFT[self.tier], self.tick
        unit = 1 << shift
        for number in range(first, len(self.handles)):
            value = self.handles[number]
            depth += 1
            parent = block_hash
            cell = by_handle.seek(value)
            row = by_handle.row(cell)
            if row:
                block_hash = block_hashes[row]
                copies = counts[row] >> shift & MAX_COPIES
                if copies < MAX_COPIES:
                    counts[row] += unit
                if ticks[row] < tick:
                    ticks[row] = tick
                is_new = not copies
            elif known_only:
                break
            else:
                block_hash = self.block_hash(number, parent)
                other = table.add_at(cell, value, block_hash, parent, depth, index, unit, tick)
                is_new = not counts[other] >> shift & MAX_COPIES
            if is_new:
                new.append(block_hash)

    def known_hashes(self, table: BlockTable, start: tuple[int, int] | None, known_only: bool) -> Iterator[int]:
        """Yields the block hashes of the run, up to the first block that cannot be named.

        start, known_only: as above; a start of None is unknown.
        """
        block_hash = None if start is None else start[0]
        for number, value in enumerate(self.handles):
            row = table.by_handle.find(value)
            if row:
                block_hash = table.block_hashes[row]
            elif block_hash is None or known_only:
                return
            else:
                block_hash = self.block_hash(number, block_hash)
            yield block_hash


def open_hashes(
    kind: type[BlocksStored] | type[BlocksRemoved], instance: str, tier: StorageTier, out: list[Change]
) -> list[int]:
    """Returns the hashes of the last change if it is of this kind, instance and tier, else those of
    a new change. The caller appends at least one hash.
    """
    last = out[-1] if out else None
    if isinstance(last, kind) and last.tier is tier and last.instance == instance:
        return last.hashes
    change = kind(instance, tier, [])
    out.append(change)
    return change.hashes


def handle_list(handles: bytes) -> list[int]:
    """Returns handles of eight bytes each, in the machine's order."""
    return array("Q", handles).tolist()


def pending_run(event: StoredEvent, tier: StorageTier, tick: int) -> PendingRun:
    """Returns the blocks of a stored event."""
    parent = parent_hash(event.parent_block_hash)
    run = PendingRun(
        -1 if parent is None else parent,
        [value & _MASK if isinstance(value, int) else engine_hash(value) for value in event.block_hashes],
        token_bytes(event.token_ids),
        extra_key_bytes(event.extra_keys, event.lora_name),
        tier,
        tick,
    )
    if event.lora_name is not None and event.lora_id is not None:
        run.load = event.lora_name, event.lora_id
    return run


class OrphanBlocks:
    """The orphans of one instance, bounded in blocks and in bytes of tokens and extra keys.

    noted: number of removals to apply when their blocks are linked.
    """

    def __init__(self, max_blocks: int, max_bytes: int) -> None:
        self._max_blocks = max_blocks
        self._max_bytes = max_bytes
        self._waiting: dict[int, dict[int, PendingRun]] = {}  # by parent, then by id()
        self._order: dict[int, PendingRun] = {}  # by id(), oldest first
        self._copies: dict[tuple[int, StorageTier], list[int]] = {}  # waiting, and removed while they waited
        self.blocks = 0
        self.bytes = 0
        self.noted = 0

    def __len__(self) -> int:
        return len(self._order)

    def add(self, item: PendingRun) -> None:
        """Adds the blocks of an event. Beyond the bounds, the oldest orphans are dropped."""
        self._waiting.setdefault(item.parent, {})[id(item)] = item
        self._order[id(item)] = item
        self.blocks += len(item.handles)
        self.bytes += item.size
        for handle in item.handles:
            self._copies.setdefault((handle, item.tier), [0, 0])[0] += 1
        while self._order and (self.blocks > self._max_blocks or self.bytes > self._max_bytes):
            self._forget(next(iter(self._order.values())))

    def child_count(self, parent: int) -> int:
        return len(self._waiting.get(parent, ()))

    def take_children(self, parent: int, runs: int, max_blocks: int) -> list[PendingRun]:
        """Removes and returns up to ``runs`` runs that wait for this handle, oldest first.

        They have about ``max_blocks`` blocks; at least one is returned if any waits.
        """
        found, blocks = list[PendingRun](), 0
        for item in self._waiting.get(parent, {}).values():
            if blocks >= max_blocks or len(found) >= runs:
                break
            found.append(item)
            blocks += len(item.handles) + 1
        for item in found:
            self._forget(item, linked=True)
        return found

    def note_removed(self, handle: int, tier: StorageTier) -> None:
        """Notes that a copy of a waiting block was removed, if one waits."""
        known = self._copies.get((handle, tier))
        if known is not None and known[1] < known[0]:
            known[1] += 1
            self.noted += 1

    def take_removal(self, handle: int, tier: StorageTier) -> bool:
        """Takes back one noted removal of a block that was just linked. Returns whether there was
        one.
        """
        known = self._copies.get((handle, tier))
        if known is None or not known[1]:
            return False
        known[1] -= 1
        self.noted -= 1
        if known == [0, 0]:
            del self._copies[handle, tier]
        return True

    def _forget(self, item: PendingRun, *, linked: bool = False) -> None:
        del self._order[id(item)]
        others = self._waiting[item.parent]
        del others[id(item)]
        if not others:
            del self._waiting[item.parent]
        self.blocks -= len(item.handles)
        self.bytes -= item.size
        for handle in item.handles:
            known = self._copies[handle, item.tier]
            known[0] -= 1
            if not linked and known[1] > known[0]:
                self.noted -= known[1] - known[0]
                known[1] = known[0]
            if not known[0] and not known[1]:
                del self._copies[handle, item.tier]
