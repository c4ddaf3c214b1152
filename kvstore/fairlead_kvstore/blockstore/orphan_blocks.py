"""The blocks of one event as a run that is added to a table, or kept until its parent is reported.

A reader that joins late, or loses a batch, receives blocks that follow one it has never seen. Their
content depends on all blocks before them, so they cannot be named yet. Other indexes drop them, and
every block that follows them stays invisible until the engine stores it again. Here they wait with
their tokens, by the handle of the parent. When a replay or a later request reports the parent, they
are linked, and then the blocks that wait for them. They are bounded: the oldest are dropped first
and counted.

A waiting block may be removed before its parent arrives. The removal is noted and applied when the
block is linked.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

import xxhash

from fairlead_kvstore.blockstore.block_hash import (
    TOKEN_BYTES,
    engine_hash,
    extra_key_bytes,
    hash_with_extras,
    parent_hash,
    token_bytes,
)
from fairlead_kvstore.blockstore.block_table import MAX_COPIES, TIER_SHIFT, BlockTable
from fairlead_kvstore.blockstore.changes import BlocksStored, Change
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.types import EventCounters
from fairlead_kvstore.events.payloads import StoredEvent

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_HASH: Final = xxhash.xxh3_64_intdigest


class BlockContent:
    """The content of consecutive blocks, which determines their block hashes.

    data: their token ids, ``width`` bytes for each block.
    extras: their extra keys as bytes; None if the engine does not report them.
    """

    def __init__(self, data: bytes, width: int, extras: list[bytes | None] | None) -> None:
        self.data = data
        self.width = width
        self.extras = extras

    @property
    def size(self) -> int:
        """The number of bytes of tokens and extra keys."""
        return len(self.data) + (sum(len(keys) for keys in self.extras if keys) if self.extras else 0)


class AdapterLoad:
    """One load of an adapter: its name, and the engine's number of the load, None without one."""

    def __init__(self, name: str, number: int | str | None) -> None:
        self.name = name
        self.number = number


class PendingRun:
    """The blocks of one event, ``handles`` after ``parent`` (-1: a prompt's start)."""

    def __init__(
        self,
        parent: int,
        handles: list[int],
        content: BlockContent,
        tier: StorageTier,
        load: AdapterLoad | None,
        tick: int,
    ) -> None:
        self.parent = parent
        self.handles = handles
        self.content = content
        self.tier = tier
        self.load = load
        self.tick = tick

    def add_to(
        self,
        table: BlockTable,
        start: tuple[int, int],
        index: int,
        blind: bool,
        instance: str,
        counters: EventCounters,
    ) -> list[Change]:
        """Adds one copy of each block to a table, and returns the changes. Takes some 2 µs a block.

        start: hash and depth of the block before the run.
        index: the adapter's, see ``LoraGenerations.name_index``.
        blind: blocks with an unknown handle cannot be named and are only counted.
        """
        own, depth = start
        by_handle, owns, counts, ticks = table.by_handle, table.owns, table.counts, table.ticks
        content, tier, tick = self.content, self.tier, self.tick
        data, width, extras = content.data, content.width, content.extras
        shift = TIER_SHIFT[tier]
        unit = 1 << shift
        found: list[Change] = []
        run: list[int] = []
        at = 0
        for number, value in enumerate(self.handles):
            depth += 1
            parent = own
            cell = by_handle.seek(value)
            row = by_handle.row(cell)
            if row:
                own = owns[row]
                copies = counts[row] >> shift & MAX_COPIES
                if copies < MAX_COPIES:
                    counts[row] += unit
                else:
                    counters.saturated += 1
                if ticks[row] < tick:
                    ticks[row] = tick
                new = not copies and not (table.twins and table.is_in_twin(row, shift))
            elif blind:
                counters.unnamed += len(self.handles) - number
                break
            else:
                own = _HASH(data[at : at + width], own)
                if extras is not None and (keys := extras[number]) is not None:
                    own = hash_with_extras(own, keys)
                new = table.add_at(cell, value, own, parent, depth, index, unit, tick)
                if not new:
                    row = by_handle.find(value)  # 0 for one of too many twins
                    counters.saturated += not row
                    new = row > 0 and not table.is_in_twin(row, shift)
            at += width
            if new:
                if not run:
                    found.append(BlocksStored(instance, tier, parent, run))
                run.append(own)
            elif run:
                run = []
        return found

    def known_hashes(
        self, table: BlockTable, start: tuple[int, int] | None, blind: bool, counters: EventCounters
    ) -> Iterator[int]:
        """Yields the block hashes of the run, up to the first block that cannot be named.

        start, blind: as above; a start of None is unknown.
        """
        own, content = None if start is None else start[0], self.content
        for number, value in enumerate(self.handles):
            row = table.by_handle.find(value)
            if row:
                own = table.owns[row]
            elif own is None or blind:
                counters.unnamed += len(self.handles) - number
                return
            else:
                own = _HASH(content.data[number * content.width : (number + 1) * content.width], own)
                if content.extras is not None and (keys := content.extras[number]) is not None:
                    own = hash_with_extras(own, keys)
            yield own


def pending_run(event: StoredEvent, adapter: str | None, tier: StorageTier, tick: int) -> PendingRun:
    """Returns the blocks of a stored event. ``adapter``: the name of its adapter, if it has one."""
    parent = parent_hash(event.parent_block_hash)
    return PendingRun(
        -1 if parent is None else parent,
        [value & _MASK if isinstance(value, int) else engine_hash(value) for value in event.block_hashes],
        BlockContent(
            token_bytes(event.token_ids), event.block_size * TOKEN_BYTES, extra_key_bytes(event.extra_keys, adapter)
        ),
        tier,
        None if adapter is None else AdapterLoad(adapter, event.lora_id),
        tick,
    )


class FollowUps:
    """The effects of an instance's last event that are to be applied before the next event.

    steps: of an adapter's blocks that are being added.
    to_add: runs of adapters' blocks that are to be added, and whether they were orphans.
    to_clear: tables and a tier, of which all copies are to be removed from a row on.
    to_touch: blocks whose predecessors are to be marked as used, with the tick.
    to_link: runs whose followers are to be added, the first of their handles to look at, and how
        many followers of that one are left; -1: they were not counted yet.
    linked: runs that were orphans, whose noted removals are to be applied after all are linked.
    """

    def __init__(self) -> None:
        self.steps: Iterator[int] | None = None
        self.to_add: deque[tuple[PendingRun, bool]] = deque()
        self.to_clear: deque[tuple[BlockTable, int, StorageTier]] = deque()
        self.to_touch: deque[tuple[int, int]] = deque()
        self.to_link: deque[tuple[PendingRun, int, int]] = deque()
        self.linked: deque[PendingRun] = deque()

    def __len__(self) -> int:
        waiting = len(self.to_add) + len(self.to_clear) + len(self.to_touch) + len(self.to_link)
        return waiting + len(self.linked) + (self.steps is not None)


class OrphanBlocks:
    """The orphans of one instance, bounded in blocks and in bytes of tokens and extra keys.

    noted: number of removals to apply when their blocks are linked.
    dropped: number of blocks evicted for lack of room.
    """

    __slots__ = ("_copies", "_most", "_most_bytes", "_order", "_waiting", "blocks", "bytes", "dropped", "noted")

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._waiting: dict[int, dict[int, PendingRun]] = {}  # by parent, then by id()
        self._order: dict[int, PendingRun] = {}  # by id(), oldest first
        self._copies: dict[tuple[int, StorageTier], list[int]] = {}  # waiting, and removed while they waited
        self.blocks = 0
        self.bytes = 0
        self.dropped = 0
        self.noted = 0

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[PendingRun]:
        return iter(self._order.values())

    def add(self, item: PendingRun) -> None:
        """Adds the blocks of an event. Beyond the bounds, the oldest orphans are dropped."""
        self._waiting.setdefault(item.parent, {})[id(item)] = item
        self._order[id(item)] = item
        self.blocks += len(item.handles)
        self.bytes += item.content.size
        for handle in item.handles:
            self._copies.setdefault((handle, item.tier), [0, 0])[0] += 1
        while self._order and (self.blocks > self._most or self.bytes > self._most_bytes):
            oldest = next(iter(self._order.values()))
            self.dropped += len(oldest.handles)
            self._forget(oldest)

    def child_count(self, parent: int) -> int:
        """Returns the number of runs that wait for this handle."""
        return len(self._waiting.get(parent, ()))

    def take_children(self, parent: int, runs: int, most: int) -> list[PendingRun]:
        """Removes and returns up to ``runs`` runs that wait for this handle, with about ``most``
        blocks: the oldest first, and at least one if any waits.
        """
        found, blocks = list[PendingRun](), 0
        for item in self._waiting.get(parent, {}).values():
            if blocks >= most or len(found) >= runs:
                break
            found.append(item)
            blocks += len(item.handles) + 1
        for item in found:
            self._forget(item, linked=True)
        return found

    def note_removed(self, handle: int, tier: StorageTier) -> bool:
        """Notes that a copy of a waiting block was removed. Returns False when none waits."""
        known = self._copies.get((handle, tier))
        if known is None or known[1] >= known[0]:
            return False
        known[1] += 1
        self.noted += 1
        return True

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
        self.bytes -= item.content.size
        for handle in item.handles:
            known = self._copies[handle, item.tier]
            known[0] -= 1
            if not linked and known[1] > known[0]:
                self.noted -= known[1] - known[0]
                known[1] = known[0]
            if not known[0] and not known[1]:
                del self._copies[handle, item.tier]
