"""The blocks of one event as a run that is added to a table, or kept until its parent is known."""

from array import array
from collections.abc import Iterator
from typing import Any, Final

import xxhash

from fairlead_kvstore.blockstore.block_hash import (
    TOKEN_BYTES,
    engine_hash,
    extra_key_bytes,
    hash_with_extras,
    parent_hash,
    token_bytes,
)
from fairlead_kvstore.blockstore.block_table import HASH_FACTOR, MAX_COPIES, TIER_SHIFT, BlockTable
from fairlead_kvstore.blockstore.changes import BlocksStored
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.types import EventCounters
from fairlead_kvstore.events.payloads import StoredEvent
from fairlead_kvstore.native import ADD_RUN

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
HANDLE_BYTES: Final = 8
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


class RunBytes:
    """The blocks of one event as bytes, which compiled code adds to a table.

    handles: eight bytes for each block, in the machine's order.
    tokens: ``width`` bytes for each block.
    """

    def __init__(self, handles: bytes, tokens: bytes, width: int, tier: StorageTier, tick: int) -> None:
        self.handles = handles
        self.tokens = tokens
        self.width = width
        self.tier = tier
        self.tick = tick

    def add_to(
        self, table: BlockTable, start: tuple[int, int], index: int, instance: str, found: list[BlocksStored]
    ) -> tuple[int, int, bool]:
        """Adds one copy of each block, up to the first that ``PendingRun.add_to`` must add.

        start, index: see there.
        found: gets the changes.

        Returns how many blocks were added, the hash of the last one, and whether the last change
        goes on with the next block.
        """
        assert ADD_RUN is not None
        (block_hash, depth), done, is_open = start, 0, False
        if table.duplicates:
            return 0, block_hash, False
        by_handle, by_block_hash = table.by_handle, table.by_block_hash
        columns, chains = table.columns, list[Any]()
        while True:
            done, block_hash, entered, full, full_hash, is_open = ADD_RUN(
                columns,
                by_handle.parts,
                by_block_hash.parts,
                HASH_FACTOR,
                self.handles,
                self.tokens,
                self.width,
                block_hash,
                depth + 1,
                index,
                TIER_SHIFT[self.tier],
                self.tick,
                done,
                chains,
                is_open,
            )
            by_handle.on_entered(entered, full)
            by_block_hash.on_entered(entered, full_hash)
            if full < 0 and full_hash < 0:
                break
        for index in range(0, len(chains), 2):
            found.append(BlocksStored(instance, self.tier, chains[index], chains[index + 1]))
        return done, block_hash, is_open

    def rest(self, done: int, last: BlocksStored | None) -> "PendingRun":
        """Returns the blocks after the first ``done``. ``last``: the change that goes on with
        them; None if there is none.
        """
        content = BlockContent(self.tokens[done * self.width :], self.width, None)
        run = PendingRun(-1, handle_list(self.handles[done * HANDLE_BYTES :]), content, self.tier, None, self.tick)
        run.open_run = [] if last is None else last.hashes
        return run


class PendingRun:
    """The blocks of one event, ``handles`` after ``parent`` (-1: a prompt's start).

    open_run: the hashes of the last change, if these blocks are the rest of a run; it goes on while
    blocks are new. None for a whole run.
    """

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
        self.open_run: list[int] | None = None

    def add_to(
        self,
        table: BlockTable,
        start: tuple[int, int],
        index: int,
        known_only: bool,
        instance: str,
        counters: EventCounters,
    ) -> list[BlocksStored]:
        """Adds one copy of each block to a table, and returns the changes. Takes some 2 µs a block.

        start: hash and depth of the block before the run.
        index: the adapter's, see ``LoraGenerations.name_index``.
        known_only: blocks with an unknown handle cannot be named and are only counted.
        """
        block_hash, depth = start
        by_handle, block_hashes, counts, ticks = table.by_handle, table.block_hashes, table.counts, table.ticks
        content, tier, tick = self.content, self.tier, self.tick
        data, width, extras = content.data, content.width, content.extras
        shift = TIER_SHIFT[tier]
        unit = 1 << shift
        found: list[BlocksStored] = []
        run: list[int] = [] if self.open_run is None else self.open_run
        first = 0
        if ADD_RUN is not None and self.open_run is None and not known_only and (extras is None or not any(extras)):
            direct = RunBytes(array("Q", self.handles).tobytes(), data, width, tier, tick)
            first, block_hash, is_open = direct.add_to(table, start, index, instance, found)
            if is_open:
                run = found[-1].hashes
            depth += first
        at = first * width
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
                else:
                    counters.saturated += 1
                if ticks[row] < tick:
                    ticks[row] = tick
                new = not copies and not (table.duplicates and table.is_in_duplicate(row, shift))
            elif known_only:
                counters.unnamed += len(self.handles) - number
                break
            else:
                block_hash = _HASH(data[at : at + width], block_hash)
                if extras is not None and (keys := extras[number]) is not None:
                    block_hash = hash_with_extras(block_hash, keys)
                new = table.add_at(cell, value, block_hash, parent, depth, index, unit, tick)
                if not new:
                    row = by_handle.find(value)  # 0 for one of too many duplicates
                    counters.saturated += not row
                    new = row > 0 and not table.is_in_duplicate(row, shift)
            at += width
            if new:
                if not run:
                    found.append(BlocksStored(instance, tier, parent, run))
                run.append(block_hash)
            elif run:
                run = []
        return found

    def known_hashes(
        self, table: BlockTable, start: tuple[int, int] | None, known_only: bool, counters: EventCounters
    ) -> Iterator[int]:
        """Yields the block hashes of the run, up to the first block that cannot be named.

        start, known_only: as above; a start of None is unknown.
        """
        block_hash, content = None if start is None else start[0], self.content
        for number, value in enumerate(self.handles):
            row = table.by_handle.find(value)
            if row:
                block_hash = table.block_hashes[row]
            elif block_hash is None or known_only:
                counters.unnamed += len(self.handles) - number
                return
            else:
                block_hash = _HASH(content.data[number * content.width : (number + 1) * content.width], block_hash)
                if content.extras is not None and (keys := content.extras[number]) is not None:
                    block_hash = hash_with_extras(block_hash, keys)
            yield block_hash


def handle_list(handles: bytes) -> list[int]:
    """Returns handles of eight bytes each, in the machine's order."""
    return array("Q", handles).tolist()


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
