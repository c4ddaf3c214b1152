"""The blocks of one instance (engine × rank), derived from its KV events in order.

The rules, each for observed behaviour of a real engine:

- *Stored* adds a copy of each block; a known handle keeps its block hash and is not hashed again.
  Blocks of the CPU and disk tiers come without extra keys, so they take the block hash of the
  handle in the GPU. If that handle is unknown and the engine reports extra keys otherwise, a salted
  block looks like a plain one. Such a block is not added.
- *Removed* removes a copy. Removals of unknown blocks, which late readers get, change nothing.
- *AllBlocksCleared* names no tier even when it means only the GPU, so all tiers are dropped. The
  GPU is empty, so the instance is complete. Blocks that remain in other tiers are missed.
- *An engine that falls asleep* clears its cache, and reports that only with its next step, perhaps
  hours later. ``EngineSleep`` drops everything at once. Events that arrive before the engine's own
  report, or before it wakes up, precede the clear and are left out. The instance is incomplete
  until that report.
- *Groups*: a hybrid model has one cache per kind of attention and reports each. A prefix can only
  be hit where the full-attention group has it. So only the first group of such a kind counts. Other
  groups may have lost blocks that a hit needs too (a
  sliding window its last blocks, Mamba a state). So an instance of a hybrid model is marked
  ``hybrid``: its depths are upper bounds. A model without any full-attention group has no depths.

Ages are in ticks of sixteen seconds, since the last store or use of a block or of one after it. So
no block is older than those that follow it. Engines evict the oldest first, then the deepest.

A store that the model's instances share is a place with blocks of its own (``SharedStore``).

The events of usual batches are applied in one step (``apply_scanned``).

Why: while an engine decodes, a batch is a block or two. Steps, and an object for each part of an
event, then cost more than the blocks.
"""

from array import array
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from typing import Final

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.adapter_loads import AdapterLoads
from fairlead_kvstore.blockstore.block_hash import TOKEN_BYTES, chain_root, engine_hash
from fairlead_kvstore.blockstore.block_table import MAX_COPIES, TICK_SECONDS, TIER_SHIFT, BlockTable, tick_of
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, Change, InstanceCleared
from fairlead_kvstore.blockstore.completeness import Completeness
from fairlead_kvstore.blockstore.pending_runs import (
    HANDLE_BYTES,
    OrphanBlocks,
    PendingRun,
    handle_list,
    open_hashes,
    pending_run,
)
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier, shared_store_id, storage_tier
from fairlead_kvstore.blockstore.types import EngineOutcome, EngineSleep, LoadNumber
from fairlead_kvstore.events.payloads import ClearedEvent, EventBatch, RemovedEvent, StoredEvent
from fairlead_kvstore.events.types import BatchesLost, ProcessRestarted, StreamResumed, StreamSuspended
from fairlead_kvstore.native import ScannedBatch, ScannedEvent

FULL_ATTENTION_KINDS: Final = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
_UNKNOWN_KINDS: Final = frozenset({None, "unknown"})
_REMOVED_PARTS: Final = 2  # of a scanned event, which has more where blocks are stored

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_SMOOTHING: Final = 0.05
_TOO_MANY_SCANS: Final = "its events clear tiers or reload adapters too often"
_BLOCK_BYTES: Final = 16
_MAX_TOUCHED_ROWS: Final = 16_384  # for all events of a usual batch, less than a millisecond
_CLEAR_BYTES: Final = 1_024  # a clear takes 0.1 ms: new tables are made
_FOLLOW_UP_BYTES: Final = 8_192
"""The cost of one follow-up step, in bytes: some 2 ms."""
MAX_SCANNED_ROWS: Final = 8_388_608
"""The rows that an engine may have looked at: half a minute of its own events."""
_SCANNED_ROWS_A_SECOND: Final = 1_048_576
_ROWS_PER_STEP: Final = 512
_ROWS_PER_EXPIRY: Final = 8_192


class InstanceBlocks:
    """The blocks of one instance. Changes go to ``out``; ``now`` is monotonic seconds.

    counts: of the model, see ``BlockStore.counts``.
    evicted_age_seconds: idle time of the blocks that the engine evicts, smoothed over some twenty.
    """

    def __init__(
        self,
        instance: str,
        model_key: str,
        shared: "SharedStore | None",
        limits: Limits,
        secret: bytes,
        counts: Counter[str],
        now: float,
    ) -> None:
        self.instance = instance
        self.model_key = model_key
        self.epoch = 1
        self.completeness = Completeness(instance, now)
        self._counts = counts
        self.block_size: int | None = None
        self.hybrid = False
        self.evicted_age_seconds: float | None = None
        self.shared = shared
        self.limits = limits
        self._secret = secret
        self.group: int | None = None
        self.names_extras = False
        self.is_asleep = False
        self._roots: dict[str | None, int] = {}
        self.blocks = BlockTable()
        self.adapters = AdapterLoads()
        self.is_reloaded = False
        """Blocks of an earlier load of an adapter are left out since the cache was cleared."""
        self._scanned_rows = 0
        self._scanned_until = 0.0
        self._orphans = OrphanBlocks(limits.kv_orphans_per_instance, limits.kv_orphans_bytes)

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def orphan_count(self) -> int:
        return self._orphans.blocks

    # --- stream ---------------------------------------------------------------------------------------------------------

    def apply(self, outcome: EngineOutcome, now: float, out: list[Change]) -> Iterator[int]:
        """Applies an outcome; see ``BlockStore.apply``. An interrupted stream delays a mark of
        completeness.
        """
        if isinstance(outcome, EventBatch):
            yield from self._apply_batch(outcome, now, out)
        elif isinstance(outcome, EngineSleep):
            self.is_asleep = outcome.is_asleep
            if self.is_asleep:
                self._drop_until_complete("its cache was cleared when it fell asleep", now, out)
        elif isinstance(outcome, BatchesLost):
            self._drop_until_complete(f"{outcome.reason} ({outcome.first} to {outcome.last})", now, out)
        elif isinstance(outcome, ProcessRestarted):
            self._on_restarted(outcome.reason, now, out)
        elif isinstance(outcome, StreamSuspended):
            self.completeness.suspend(outcome.reason, now, out)
        elif isinstance(outcome, StreamResumed):
            self.completeness.resume(out)
        elif not self.is_asleep and not self.is_reloaded:
            self.completeness.set_mark(True, outcome.reason, now, out)

    def _apply_batch(self, batch: EventBatch, now: float, out: list[Change]) -> Iterator[int]:
        if batch.unknown or batch.refused:
            self._counts["unknown_events"] += batch.unknown
            self._counts["refused_events"] += batch.refused
        tick, events = tick_of(now), batch.events
        # Time pays for scans: an engine that causes more loses its blocks, and delays no other.
        allowed = int(max(0.0, now - self._scanned_until) * _SCANNED_ROWS_A_SECOND)
        self._scanned_rows, self._scanned_until = max(0, self._scanned_rows - allowed), now
        for event in events:
            if self._scanned_rows > MAX_SCANNED_ROWS:
                self._drop_until_complete(_TOO_MANY_SCANS, now, out)
            if isinstance(event, ClearedEvent):
                yield from self._on_cleared(event, now, out)
            elif self.is_asleep:
                continue
            elif isinstance(event, RemovedEvent):
                keys = [value & _MASK if isinstance(value, int) else engine_hash(value) for value in event.block_hashes]
                self._on_removed(event.group_idx, keys, storage_tier(event.medium, event.locality), tick, out)
            elif (item := self._run_to_add(event, tick, out)) is not None:
                yield from self._add(item, now, out)

    def _drop_until_complete(self, reason: str, now: float, out: list[Change]) -> None:
        """Drops all blocks and orphans. Later events are applied, but the instance is incomplete
        until it is marked complete or cleared.
        """
        self._drop_all(reason, out)
        self.completeness.set_mark(False, reason, now, out)

    def _on_restarted(self, reason: str, now: float, out: list[Change]) -> None:
        """Begins a new epoch for another engine process, in which old handles mean nothing."""
        self.epoch += 1
        self.group, self.is_asleep = None, False
        self.completeness.reset()
        self.names_extras, self.hybrid, self.evicted_age_seconds = False, False, None
        self._drop_all(reason, out, always=True)
        self.adapters = AdapterLoads()
        self.completeness.set_mark(False, reason, now, out)

    def evict(self, count: int, now: float, out: list[Change]) -> None:
        """Drops ``count`` blocks for lack of memory: the least recently used ones, ends of chains
        first.
        """
        self._counts["dropped"] += min(count, len(self))
        for row in self.blocks.oldest(count):
            self._drop_row(row, INSTANCE_TIERS, out)
        self.completeness.set_mark(False, "not enough memory for all blocks", now, out)

    # --- stored ---------------------------------------------------------------------------------------------------------

    def _run_to_add(self, event: StoredEvent, tick: int, out: list[Change]) -> PendingRun | None:
        """Returns the blocks of an event that are to be added; None where there are none."""
        tier = storage_tier(event.medium, event.locality)
        if not self._is_counted_group(event.group_idx, event.kv_cache_spec_kind, learn=tier is StorageTier.GPU):
            return None
        name, number = event.lora_name, event.lora_id
        is_adapter = name is not None or number is not None
        if not event.block_hashes or (
            is_adapter and not self.adapters.has_room_for(name, number, self.limits.kv_adapters)
        ):
            return None
        if tier is StorageTier.GPU:
            self.block_size = event.block_size
            self.names_extras = self.names_extras or event.extra_keys is not None
        item = pending_run(event, tier, tick)
        if tier is StorageTier.REMOTE:
            start = self._chain_start(item)
            known_only = item.extras is None and self.names_extras
            if self.shared is not None:
                self.shared.add(item.known_hashes(self.blocks, start, known_only), tick, out)
            return None
        return item

    def _add(self, item: PendingRun, now: float, out: list[Change]) -> Iterator[int]:
        """Adds the blocks of an event, and the orphans that follow them, directly or after other
        orphans. Then applies the removals that were noted for these. Yields the cost of each step.

        Orphans that cannot be added wait again. They are not looked at again, since those of a
        handle are counted first.
        """
        is_added = yield from self._add_run(item, now, out)
        orphans, added, linked, cost = self._orphans, deque([item] if is_added else []), list[PendingRun](), 0
        while added and len(orphans):
            for handle in added.popleft().handles:
                left = orphans.child_count(handle)
                while children := orphans.take_children(handle, left, _FOLLOW_UP_BYTES // _BLOCK_BYTES):
                    left -= len(children)
                    for child in children:
                        cost += (len(child.handles) + 2) * _BLOCK_BYTES
                        self._counts["linked"] += len(child.handles)
                        is_added = yield from self._add_run(child, now, out)
                        if is_added:
                            added.append(child)
                            linked.append(child)
                    if cost >= _FOLLOW_UP_BYTES:
                        yield cost
                        cost = 0
        if cost:
            yield cost
        for run in linked:
            if orphans.noted:
                for handle in run.handles:
                    if orphans.take_removal(handle, run.tier):
                        self._remove_copy(handle, run.tier, run.tick, out)
            yield len(run.handles) * _BLOCK_BYTES

    def _add_run(self, item: PendingRun, now: float, out: list[Change]) -> Generator[int, None, bool]:
        """Adds the blocks of a run, and marks those before it as used. Returns False if they do not
        count, or wait as orphans for their parent. Yields the cost of each step.
        """
        index = 0
        if item.load is not None:
            index = yield from self._adapter_index(*item.load, item, now, out)
            if index < 0:
                return False
        start = self._chain_start(item)
        if start is None:
            self._counts["orphans"] += len(item.handles)
            self._orphans.add(item)
            return False
        known_only = item.extras is None and item.tier is not StorageTier.GPU and self.names_extras
        new = item.add_to(self.blocks, start, index, known_only)
        if new:
            open_hashes(BlocksStored, self.instance, item.tier, out).extend(new)
        before = start[0] if item.parent >= 0 else 0
        while before := self.blocks.touch(before, item.tick):
            yield _FOLLOW_UP_BYTES
        return True

    def _adapter_index(
        self, name: str, number: LoadNumber, item: PendingRun, now: float, out: list[Change]
    ) -> Generator[int, None, int]:
        """Returns the index of the adapter of a run; -1 if its load does not count. The first run
        of a later load drops the blocks of the load before, unless a handle shows the same content.

        Yields the cost of each step. No event may be applied between two steps.
        """
        adapters, blocks = self.adapters, self.blocks
        newest, is_later = adapters.newest.get(name), adapters.is_later(name, number)
        if is_later:
            adapters.begin(name, number)
        index, handles = adapters.indexes[name], [item.parent, item.handles[0]]
        if newest is None or (newest == number and not self._has_other_handle(name, item)):
            return index
        if any(blocks.adapters[blocks.by_handle.find(handle)] == index for handle in handles if handle >= 0):
            return index
        is_earlier, dropped = newest != number and not is_later, 1
        if not is_earlier:
            dropped = yield from self._drop_rows(INSTANCE_TIERS, index, out)
        if dropped and not self.is_reloaded:
            self.is_reloaded = True
            self.completeness.set_mark(False, f"the adapter {name} was loaded again", now, out)
        return -1 if is_earlier else index

    def _has_other_handle(self, name: str, item: PendingRun) -> bool:
        """Returns whether the first block of an adapter's prompt is known under another handle.

        False for an engine that does not report all that a handle covers besides the path.
        """
        if item.parent >= 0 or item.extras is None or item.tier is not StorageTier.GPU:
            return False
        row = self.blocks.by_block_hash.find(item.block_hash(0, self._chain_root(name)))
        return row > 0 and self.blocks.handles[row] != item.handles[0]

    def _chain_start(self, item: PendingRun) -> tuple[int, int] | None:
        """Returns block hash and depth of the block before the run; None when it is unknown."""
        if item.parent < 0:
            return self._chain_root(None if item.load is None else item.load[0]), -1
        blocks = self.blocks
        row = blocks.by_handle.find(item.parent)
        if row:
            return blocks.block_hashes[row], blocks.depths[row]
        row = blocks.by_handle.find(item.handles[0])
        return (blocks.parents[row], blocks.depths[row] - 1) if row else None

    # --- removed --------------------------------------------------------------------------------------------------------

    def _on_removed(self, group: int | None, keys: list[int], tier: StorageTier, tick: int, out: list[Change]) -> None:
        if not self._is_counted_group(group, None, learn=False):
            return
        for key in keys:
            if tier is StorageTier.REMOTE:
                row = self.blocks.by_handle.find(key)
                if row and self.shared is not None:
                    self.shared.remove(self.blocks.block_hashes[row], out)
            elif not self._remove_copy(key, tier, tick, out):
                self._orphans.note_removed(key, tier)

    def _remove_copy(self, key: int, tier: StorageTier, tick: int, out: list[Change]) -> bool:
        """Removes one copy of the block with the handle ``key``; returns False if it has none."""
        blocks = self.blocks
        row = blocks.by_handle.find(key)
        copies = blocks.counts[row] >> TIER_SHIFT[tier] & MAX_COPIES
        if not copies:
            return False
        if copies == 1 and tier is StorageTier.GPU:
            seconds, known = (tick - blocks.ticks[row]) * TICK_SECONDS, self.evicted_age_seconds
            self.evicted_age_seconds = seconds if known is None else known + (seconds - known) * _SMOOTHING
        self._remove_copies(row, tier, 1, out)
        return True

    def _remove_copies(self, row: int, tier: StorageTier, copies: int, out: list[Change]) -> None:
        """Removes copies of a row, and the row with its last one.

        The last copy in a tier is reported, unless the block hash leads to another row that has
        one.
        """
        blocks, shift = self.blocks, TIER_SHIFT[tier]
        block_hash, counts = blocks.block_hashes[row], blocks.counts
        left = counts[row] - (copies << shift)
        if left:
            counts[row] = left
            if left >> shift & MAX_COPIES:
                return
            first = blocks.by_block_hash.find(block_hash)
        else:
            first = blocks.release(row)
        if not counts[first] >> shift & MAX_COPIES:
            open_hashes(BlocksRemoved, self.instance, tier, out).append(block_hash)

    def _drop_row(self, row: int, tiers: tuple[StorageTier, ...], out: list[Change]) -> bool:
        """Removes all copies of a row in these tiers. Returns whether there were any."""
        found = False
        for tier in tiers:
            if copies := self.blocks.counts[row] >> TIER_SHIFT[tier] & MAX_COPIES:
                self._remove_copies(row, tier, copies, out)
                found = True
        return found

    def _drop_rows(
        self, tiers: tuple[StorageTier, ...], adapter: int | None, out: list[Change]
    ) -> Generator[int, None, int]:
        """Removes all copies in these tiers, of one adapter (an index) or of all blocks.

        Returns the number of their rows. Yields the cost of each step.
        """
        blocks, total = self.blocks, 0
        self._scanned_rows += len(blocks)
        for start in range(1, len(blocks.counts), _ROWS_PER_STEP):
            dropped = 0
            for row in range(start, min(start + _ROWS_PER_STEP, len(blocks.counts))):
                if (adapter is None or blocks.adapters[row] == adapter) and self._drop_row(row, tiers, out):
                    dropped += 1
            total += dropped
            yield _ROWS_PER_STEP + dropped * _BLOCK_BYTES
        return total

    # --- scanned events -------------------------------------------------------------------------------------------------

    def apply_scanned(self, batch: ScannedBatch, now: float, out: list[Change]) -> int:
        """Applies the events of a usual batch, and returns how many: up to the first that has
        further effects. ``apply`` must apply the rest.
        """
        _, medium, _, events = batch
        if self.is_asleep or self._scanned_rows > MAX_SCANNED_ROWS:
            return 0
        if storage_tier(medium, None) is not StorageTier.GPU:
            return 0
        tick, done, max_depth = tick_of(now), 0, _MAX_TOUCHED_ROWS // max(1, len(events))
        for event in events:
            if len(event) == _REMOVED_PARTS:
                handles, group = event
                self._on_removed(group, handle_list(handles), StorageTier.GPU, tick, out)
            elif not self._add_scanned(event, tick, max_depth, out):
                break
            done += 1
        return done

    def _add_scanned(self, event: ScannedEvent, tick: int, max_depth: int, out: list[Change]) -> bool:
        """Adds the blocks of a stored event, and marks those before it as used. Returns False, and
        changes nothing, for a block that orphans follow, and for one with an unknown parent.

        Also for a parent that is not marked, with more than ``max_depth`` blocks before it.
        """
        parent, handles, tokens, block_size, has_extra_keys, group, kind = event
        blocks, orphans = self.blocks, self._orphans
        if len(orphans) and any(orphans.child_count(handle) for handle in handle_list(handles)):
            return False
        if parent < 0:
            start = (self._chain_root(None), -1)
        else:
            row = blocks.by_handle.find(parent)
            if not row or (blocks.ticks[row] < tick and blocks.depths[row] > max_depth):
                return False
            start = (blocks.block_hashes[row], blocks.depths[row])
        if not self._is_counted_group(group, kind, learn=True):
            return True
        self.block_size = block_size
        self.names_extras = self.names_extras or has_extra_keys
        new, width, tier = list[int](), block_size * TOKEN_BYTES, StorageTier.GPU
        done, block_hash = blocks.add_run(start, (handles, tokens, width), 0, TIER_SHIFT[tier], tick, new)
        if done < len(handles) // HANDLE_BYTES:
            run = PendingRun(-1, handle_list(handles), tokens, None, tier, tick)
            run.add_from(done, blocks, (block_hash, start[1] + done), 0, False, new)
        if new:
            open_hashes(BlocksStored, self.instance, tier, out).extend(new)
        if parent >= 0:
            blocks.touch(start[0], tick)
        return True

    # --- helpers --------------------------------------------------------------------------------------------------------

    def _on_cleared(self, event: ClearedEvent, now: float, out: list[Change]) -> Iterator[int]:
        """Drops all blocks, or all copies in one tier for an engine whose clear names a slower one.
        Yields the cost of each step.
        """
        tier = storage_tier(event.medium, None)
        if tier is StorageTier.GPU:
            self.is_asleep = False
            self._drop_all("the engine cleared its cache", out)
            self.completeness.set_mark(True, "empty since the engine cleared its cache", now, out)
        yield _CLEAR_BYTES
        if tier in (StorageTier.CPU, StorageTier.DISK):
            yield from self._drop_rows((tier,), None, out)

    def _drop_all(self, reason: str, out: list[Change], *, always: bool = False) -> None:
        """Drops every block of every tier, orphans included. The caller sets the mark."""
        if len(self.blocks) or always:
            out.append(InstanceCleared(self.instance, self.epoch, reason))
        self.blocks = BlockTable()
        self.is_reloaded, self._scanned_rows = False, 0
        self._orphans = OrphanBlocks(self.limits.kv_orphans_per_instance, self.limits.kv_orphans_bytes)

    def _is_counted_group(self, group_idx: int | None, kind: str | None, *, learn: bool) -> bool:
        """Returns whether events of this attention group count (only the first full-attention one).

        learn: the event may decide which group that is.
        """
        group = group_idx or 0
        if self.group is None:
            if not learn:
                return True  # the event is about unknown blocks
            if kind in FULL_ATTENTION_KINDS or (kind in _UNKNOWN_KINDS and not group):
                self.group = group
        if group != self.group:
            self.hybrid = True
            return False
        return True

    def _chain_root(self, adapter: str | None) -> int:
        known = self._roots.get(adapter)
        if known is None:
            known = self._roots[adapter] = chain_root(self.model_key, adapter, secret=self._secret)
        return known


class SharedStore(InstanceBlocks):
    """The blocks that a model's instances wrote to a store they share.

    Why: a store such as Mooncake does not report its evictions. Of 4,961 blocks that were reported
    as stored, none was ever reported as removed, while the store evicted most of them. Events
    therefore cannot prove presence. A block counts for ``kv_shared_seconds`` after its last write,
    for every instance of the model alike. A write within half of that time changes nothing.
    """

    def __init__(self, model_key: str, limits: Limits, counts: Counter[str], now: float) -> None:
        super().__init__(shared_store_id(model_key), model_key, None, limits, b"", counts, now)
        self._max_ticks = max(1, round(limits.kv_shared_seconds / TICK_SECONDS))
        self._written: dict[int, array[int]] = {}  # block hashes by the tick of a write
        self._restored = range(0)  # rows of a snapshot that are not in it yet

    def add(self, hashes: Iterable[int], tick: int, out: list[Change]) -> None:
        """Adds blocks that were written to the store, and reports them."""
        blocks, written = self.blocks, list[int]()
        for block_hash in hashes:
            cell = blocks.by_handle.seek(block_hash)
            row = blocks.by_handle.row(cell)
            if not row:
                blocks.add_at(cell, block_hash, block_hash, 0, 0, 0, 1, tick)
            elif 2 * (tick - blocks.ticks[row]) < self._max_ticks:
                continue
            else:
                blocks.ticks[row] = tick
            written.append(block_hash)
        if written:
            self._written.setdefault(tick, array("Q")).extend(written)
            open_hashes(BlocksStored, self.instance, StorageTier.GPU, out).extend(written)

    def remove(self, block_hash: int, out: list[Change]) -> None:
        if row := self.blocks.by_handle.find(block_hash):
            self._remove_copies(row, StorageTier.GPU, 1, out)

    def on_restored(self) -> None:
        self._restored = range(1, len(self.blocks.counts))

    def expire(self, now: float, out: list[Change]) -> bool:
        """Removes blocks that have expired. Returns whether more remain: one call takes some ms."""
        blocks, left = self.blocks, _ROWS_PER_EXPIRY
        # Blocks that came with a snapshot are not in `_written` yet.
        for row in self._restored[:left]:
            if blocks.counts[row]:
                self._written.setdefault(blocks.ticks[row], array("Q")).append(blocks.block_hashes[row])
        self._restored = self._restored[left:]
        newest = tick_of(now) - self._max_ticks
        for tick in sorted([tick for tick in self._written if tick <= newest]):
            written = self._written[tick]
            while written and left:
                left -= 1
                block_hash = written.pop()
                row = blocks.by_handle.find(block_hash)
                if row and blocks.ticks[row] <= newest:
                    self._remove_copies(row, StorageTier.GPU, 1, out)
            if not written:
                del self._written[tick]
        return not left or len(self._restored) > 0
