"""The blocks of one instance (engine × rank), derived from its KV events in order.

The rules, each for observed behaviour of a real engine:

- *Stored* adds a copy of each block; a known handle keeps its block hash and is not hashed again.
  Blocks of the CPU and disk tiers come without extra keys, so they take the block hash of the
  handle in the GPU. If that handle is unknown and the engine reports extra keys otherwise, a salted
  block looks like a plain one. Such a block is counted (``unnamed``) and not added.
- *Removed* removes a copy. Removals of unknown blocks, which late readers get, are ``unknown``.
- *AllBlocksCleared* names no tier even when it means only the GPU, so all tiers are dropped. Blocks
  that remain in other tiers are not reported again: these tiers are ``vague`` until an event names
  them. The GPU is empty, so the instance is complete.
- *Fairlead's own clears* are reported by the engine only with its next step, perhaps hours later.
  ``on_cleared_by_fairlead`` drops everything at once. Events that arrive before the engine's own
  report precede the clear and are left out.
- *Groups*: a hybrid model has one cache per kind of attention and reports each. A prefix can only
  be hit where the full-attention group has it. So only the first group of such a kind counts; the
  others are counted as ``other_groups``. Other groups may have lost blocks that a hit needs too (a
  sliding window its last blocks, Mamba a state). So an instance of a hybrid model is marked
  ``hybrid``: its depths are upper bounds. A model without any full-attention group has no depths.

Ages are in ticks of sixteen seconds, since the last store or use of a block or of one after it. So
no block is older than those that follow it. Engines evict the oldest first, then the deepest.
"""

from typing import Final

import xxhash

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.block_hash import (
    TOKEN_BYTES,
    chain_root,
    engine_hash,
    extra_key_bytes,
    hash_with_extras,
    parent_hash,
    token_bytes,
)
from fairlead_kvstore.blockstore.block_table import MAX_COPIES, TICK_SECONDS, TIER_SHIFT, BlockTable, tick_of
from fairlead_kvstore.blockstore.changes import Change, InstanceCleared
from fairlead_kvstore.blockstore.completeness import Completeness
from fairlead_kvstore.blockstore.lora_generations import MAX_SCANNED_ROWS, LoraGenerations
from fairlead_kvstore.blockstore.orphan_blocks import AdapterLoad, BlockContent, OrphanBlocks, PendingRun
from fairlead_kvstore.blockstore.shared_store_hints import SharedStoreHints
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier, storage_tier
from fairlead_kvstore.blockstore.types import EventCounters
from fairlead_kvstore.events.payloads import ClearedEvent, EventBatch, RemovedEvent, StoredEvent

FULL_ATTENTION_KINDS: Final = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
_UNKNOWN_KINDS: Final = frozenset({None, "unknown"})
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_SMOOTHING: Final = 0.05
_MAX_MEDIA: Final = 32
_TOO_MANY_SCANS: Final = "its events clear tiers or reload adapters too often"
_HASH: Final = xxhash.xxh3_64_intdigest


class InstanceBlocks:
    """The blocks of one instance. Changes go to ``out``; ``now`` is monotonic seconds."""

    def __init__(
        self,
        instance: str,
        model_key: str,
        shared: SharedStoreHints,
        limits: Limits,
        secret: bytes,
        now: float,
        *,
        shared_media: frozenset[str] = frozenset(),
        exact_media: frozenset[str] = frozenset(),
    ) -> None:
        self.instance = instance
        self.model_key = model_key
        self._shared_media = shared_media
        self._exact_media = exact_media
        self.epoch = 1
        self.completeness = Completeness(instance, now)
        self.counters = EventCounters()
        self.block_size: int | None = None
        self.hybrid = False
        self.unknown_tiers: set[StorageTier] = set()
        self.evicted_age_seconds: float | None = None
        self._shared = shared
        self.limits = limits
        self._secret = secret
        self.group: int | None = None
        self.names_extras = False
        self.awaited_until: float | None = None
        self.last_clear: float | None = None
        self._roots: dict[str | None, int] = {}
        self._tiers: dict[str | None, StorageTier] = {}
        self.blocks = BlockTable()
        self.adapters = LoraGenerations(instance, self.blocks, limits.kv_adapter_versions)
        self._orphans = OrphanBlocks(limits.kv_orphans_per_instance, limits.kv_orphans_bytes)

    def __len__(self) -> int:
        """Returns the number of rows, including those of adapters that are not loaded now."""
        rows = len(self.blocks)
        return rows + sum(len(parked) for parked in self.adapters) if self.adapters.parked else rows

    @property
    def bytes(self) -> int:
        """Memory of all tables, in bytes."""
        return self.blocks.bytes + sum(parked.bytes for parked in self.adapters)

    @property
    def orphan_count(self) -> int:
        """The number of blocks whose parent is unknown."""
        return self._orphans.blocks

    # --- stream ---------------------------------------------------------------------------------------------------------

    def apply(self, batch: EventBatch, now: float, out: list[Change]) -> None:
        """Applies one batch in order; events that precede an awaited clear are only counted."""
        self.counters.unknown_events += batch.unknown
        self.counters.refused_events += batch.refused
        tick = tick_of(now)
        awaited = self.awaited_until
        awaiting = awaited is not None and any(isinstance(event, ClearedEvent) for event in batch.events)
        if awaited is not None and not awaiting:
            if now <= awaited:
                self.counters.before_clear += len(batch.events)
                return
            self.awaited_until = None
            self.completeness.set_mark(False, "the engine confirmed a clear but never reported it", now, out)
        self.adapters.on_batch(now)
        for event in batch.events:
            if self.adapters.scanned_rows > MAX_SCANNED_ROWS:
                self._drop_all(_TOO_MANY_SCANS, out)
                self.completeness.set_mark(False, _TOO_MANY_SCANS, now, out)
            if awaiting and not isinstance(event, ClearedEvent):
                self.counters.before_clear += 1
            elif isinstance(event, StoredEvent):
                self._on_stored(event, tick, now, out)
            elif isinstance(event, RemovedEvent):
                self._on_removed(event, tick, out)
            else:
                awaiting = False
                self._on_cleared(event, now, out)
        self._update_doubt(now, out)

    def mark_complete(self, reason: str, now: float, out: list[Change]) -> None:
        """Marks the instance complete, since no event is missing; a clear is no longer awaited.
        An interrupted stream delays the mark, and a doubt withholds it (``completeness``).
        """
        self.awaited_until = None
        self.completeness.set_mark(True, reason, now, out)

    def drop_after_lost_batches(self, reason: str, now: float, out: list[Change]) -> None:
        """Drops all blocks, orphans and parked blocks because events are missing. Later events are
        applied, but the instance is incomplete until it is marked complete or cleared.
        """
        self._drop_all(reason, out)
        self.completeness.set_mark(False, reason, now, out)

    def on_restarted(self, reason: str, now: float, out: list[Change]) -> None:
        """Begins a new epoch for another engine process, in which old handles mean nothing."""
        self.epoch += 1
        self.group, self.awaited_until = None, None
        self.completeness.reset()
        self.names_extras, self.hybrid, self.evicted_age_seconds = False, False, None
        self._drop_all(reason, out, always=True)
        self.adapters = LoraGenerations(self.instance, self.blocks, self.limits.kv_adapter_versions)
        self.unknown_tiers.clear()
        self.completeness.set_mark(False, reason, now, out)

    def on_stream_suspended(self, reason: str, now: float, out: list[Change]) -> None:
        """Marks the instance incomplete because its stream was interrupted."""
        self.completeness.suspend(reason, now, out)

    def on_stream_resumed(self, out: list[Change]) -> None:
        """Restores the mark because the same process continues."""
        self.completeness.resume(out)

    def on_cleared_by_fairlead(self, now: float, out: list[Change]) -> None:
        """Drops all blocks after a confirmed clear; skips events until the engine reports it."""
        echo = self.limits.kv_clear_echo_seconds
        if self.last_clear is None or now - self.last_clear > echo:
            self.awaited_until = now + echo
        self._drop_all("cleared by Fairlead", out)
        self.completeness.set_mark(True, "cleared by Fairlead", now, out)

    def on_adapter_source(self, name: str, place: str, now: float, out: list[Change]) -> None:
        """Records the source (path or URL) from which the engine loaded the adapter ``name``."""
        self.adapters.on_source_reported(name, place, out)
        self._update_doubt(now, out)

    def touch(self, own: int, now: float) -> None:
        """Marks a block and those before it as used by a request."""
        self.blocks.touch(own, tick_of(now))

    def evict(self, count: int, now: float, out: list[Change]) -> None:
        """Drops ``count`` or more blocks for lack of memory: parked ones first, then the least
        recently used ones, ends of chains first.
        """
        self.counters.dropped += min(count, len(self))
        while self.adapters.parked and count > 0:
            count -= len(self.adapters.parked.pop(next(iter(self.adapters.parked)))[1])
        blocks = self.blocks
        for row in blocks.oldest(max(0, count)):
            for tier in INSTANCE_TIERS:
                if blocks.counts[row] >> TIER_SHIFT[tier] & MAX_COPIES:
                    self._append_removed(row, tier, out)
            blocks.release(row)
        self.completeness.set_mark(False, "not enough memory for all blocks", now, out)

    # --- stored ---------------------------------------------------------------------------------------------------------

    def _on_stored(self, event: StoredEvent, tick: int, now: float, out: list[Change]) -> None:
        tier = self._tier_of(event)
        if not self._is_counted_group(event.group_idx, event.kv_cache_spec_kind, learn=tier is StorageTier.GPU):
            self.counters.other_groups += 1
            return
        name = event.lora_name
        if name is None and event.lora_id is not None:
            name = f"#{event.lora_id}"  # the engine only numbers its adapters; no request has this name
        if not event.block_hashes or (
            name is not None and not self.adapters.has_room_for(name, self.limits.kv_adapters)
        ):
            self.counters.unnamed += len(event.block_hashes)
            return
        if tier is StorageTier.GPU:
            self.block_size = event.block_size
            if event.extra_keys is not None:
                self.names_extras = True
        parent = parent_hash(event.parent_block_hash)
        item = PendingRun(
            -1 if parent is None else parent,
            [value & _MASK if isinstance(value, int) else engine_hash(value) for value in event.block_hashes],
            BlockContent(
                token_bytes(event.token_ids), event.block_size * TOKEN_BYTES, extra_key_bytes(event.extra_keys, name)
            ),
            tier,
            None if name is None else AdapterLoad(name, event.lora_id),
            tick,
        )
        if tier is StorageTier.REMOTE:
            self._add_shared_store_hints(item, now, out)
            return
        self.unknown_tiers.discard(tier)
        self.counters.stored += len(item.handles)
        if self._add_or_hold(item, out) and len(self._orphans):
            self._link_orphans(item, out)

    def _link_orphans(self, item: PendingRun, out: list[Change]) -> None:
        """Adds the orphans that follow a run, directly or after other orphans. Then applies the
        removals that were noted for them.
        """
        linked = [item]
        for run in linked:
            for value in run.handles:
                for other in self._orphans.take_children(value):
                    self.counters.linked += len(other.handles)
                    if self._add_or_hold(other, out):
                        linked.append(other)
        if self._orphans.noted:
            for run in linked[1:]:
                for value in run.handles:
                    if self._orphans.take_removal(value, run.tier):
                        self._remove_copy(value, run.tier, run.tick, out)

    def _chain_start(self, item: PendingRun, table: BlockTable) -> tuple[int, int] | None:
        """Returns block hash and depth of the block before the run; None when it is unknown."""
        if item.parent < 0:
            return self._chain_root(None if item.load is None else item.load.name), -1
        row = table.by_handle.find(item.parent)
        if row:
            own = table.owns[row]
            if table.ticks[row] < item.tick:
                table.touch(own, item.tick)
            return own, table.depths[row]
        row = table.by_handle.find(item.handles[0]) if item.handles else 0
        return (table.parents[row], table.depths[row] - 1) if row else None

    def _add_or_hold(self, item: PendingRun, out: list[Change]) -> bool:
        """Adds the blocks of a run; returns False if they wait as orphans for their parent."""
        table, index = self.blocks, 0
        if (load := item.load) is not None:
            index = self.adapters.name_index(load.name)
            known = (item.parent, *item.handles[:1]) if item.parent >= 0 else tuple(item.handles[:1])
            table = self.adapters.table_for(load.name, load.number, known, out)
        start = self._chain_start(item, table)
        if start is None:
            self.counters.orphans += len(item.handles)
            self._orphans.add(item)
            return False
        own, depth = start
        blind = item.content.extras is None and item.tier is not StorageTier.GPU and self.names_extras
        run = self._add_run(item, table, own, depth, index, blind)
        if table is self.blocks:
            out += run
        return True

    def _add_run(
        self, item: PendingRun, table: BlockTable, own: int, depth: int, index: int, blind: bool
    ) -> list[Change]:
        """Adds one copy of each block of a run, and returns the changes. Takes some 2 µs a block.

        own, depth: hash and depth of the block before the run.
        index: the adapter's, see ``LoraGenerations.name_index``.
        blind: blocks with an unknown handle cannot be named and are only counted.
        """
        by_handle, owns, counts, ticks = table.by_handle, table.owns, table.counts, table.ticks
        content, tier, tick = item.content, item.tier, item.tick
        data, width, extras = content.data, content.width, content.extras
        shift = TIER_SHIFT[tier]
        unit = 1 << shift
        found: list[Change] = []
        run: list[int] = []
        at = 0
        for number, value in enumerate(item.handles):
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
                    self.counters.saturated += 1
                if ticks[row] < tick:
                    ticks[row] = tick
                new = not copies and not (table.twins and table.is_in_twin(row, shift))
            elif blind:
                self.counters.unnamed += len(item.handles) - number
                break
            else:
                own = _HASH(data[at : at + width], own)
                if extras is not None and (keys := extras[number]) is not None:
                    own = hash_with_extras(own, keys)
                new = table.add_at(cell, value, own, parent, depth, index, unit, tick)
                if not new:
                    row = by_handle.find(value)  # 0 for one of too many twins
                    self.counters.saturated += not row
                    new = row > 0 and not table.is_in_twin(row, shift)
            at += width
            if new:
                if not run:
                    found.append(changes.BlocksStored(self.instance, tier, parent, run))
                run.append(own)
            elif run:
                run = []
        return found

    def _add_shared_store_hints(self, item: PendingRun, now: float, out: list[Change]) -> None:
        """Adds blocks in a shared store as hints for the model, see ``shared_store_hints.py``."""
        start = self._chain_start(item, self.blocks)
        own = start[0] if start else None
        content = item.content
        blind = content.extras is None and self.names_extras
        for number, value in enumerate(item.handles):
            row = self.blocks.by_handle.find(value)
            if row:
                own = self.blocks.owns[row]
            elif own is None or blind:
                self.counters.unnamed += len(item.handles) - number
                return
            else:
                own = _HASH(content.data[number * content.width : (number + 1) * content.width], own)
                if content.extras is not None and (keys := content.extras[number]) is not None:
                    own = hash_with_extras(own, keys)
            self._shared.add(own, now, out)

    # --- removed --------------------------------------------------------------------------------------------------------

    def _on_removed(self, event: RemovedEvent, tick: int, out: list[Change]) -> None:
        if not self._is_counted_group(event.group_idx, None, learn=False):
            self.counters.other_groups += 1
            return
        tier = self._tier_of(event)
        self.counters.removed += len(event.block_hashes)
        for value in event.block_hashes:
            key = value & _MASK if isinstance(value, int) else engine_hash(value)
            if tier is StorageTier.REMOTE:
                if row := self.blocks.by_handle.find(key):
                    self._shared.remove(self.blocks.owns[row], out)
                else:
                    self.counters.unknown += 1
            elif not self._remove_copy(key, tier, tick, out) and not self._orphans.note_removed(key, tier):
                self.counters.unknown += 1

    def _remove_copy(self, key: int, tier: StorageTier, tick: int, out: list[Change]) -> bool:
        """Removes one copy of the block with the handle ``key``; returns False if it has none."""
        table, shift = self.blocks, TIER_SHIFT[tier]
        row = table.by_handle.find(key)
        if not row and self.adapters.parked:
            table, row = self.adapters.find(key)
        copies = table.counts[row] >> shift & MAX_COPIES
        if not copies:
            return False
        if copies == 1 and tier is StorageTier.GPU:
            self._update_evicted_age((tick - table.ticks[row]) * TICK_SECONDS)
        if (
            table is self.blocks and table.counts[row] == 1 << shift and not table.twins
        ):  # the usual case, on the hot path
            self._append_removed(row, tier, out)
            table.release(row)
        else:
            self._remove_copies(table, row, tier, 1, out)
        return True

    def _remove_copies(self, table: BlockTable, row: int, tier: StorageTier, copies: int, out: list[Change]) -> None:
        """Removes copies of a row, and the row with its last one."""
        shift = TIER_SHIFT[tier]
        left = table.counts[row] - (copies << shift)
        if table is self.blocks and not left >> shift & MAX_COPIES:
            self._append_removed(row, tier, out)
        if left:
            table.counts[row] = left
        else:
            table.release(row)

    def _append_removed(self, row: int, tier: StorageTier, out: list[Change]) -> None:
        """Reports that a row's last copy in a tier is removed, unless a twin still has one."""
        table = self.blocks
        if table.twins and table.is_in_twin(row, TIER_SHIFT[tier]):
            return
        last = out[-1] if out else None
        if isinstance(last, changes.BlocksRemoved) and last.tier is tier and last.instance == self.instance:
            last.hashes.append(table.owns[row])
        else:
            out.append(changes.BlocksRemoved(self.instance, tier, [table.owns[row]]))

    def _update_evicted_age(self, seconds: float) -> None:
        """Updates the idle time of evicted blocks, smoothed over some twenty evictions."""
        known = self.evicted_age_seconds
        self.evicted_age_seconds = seconds if known is None else known + (seconds - known) * _SMOOTHING

    # --- helpers --------------------------------------------------------------------------------------------------------

    def _update_doubt(self, now: float, out: list[Change]) -> None:
        if self.adapters.parked or self.completeness.doubt:
            self.completeness.set_doubt(self.adapters.doubt(), now, out)

    def _on_cleared(self, event: ClearedEvent, now: float, out: list[Change]) -> None:
        self.counters.clears += 1
        self.awaited_until, self.last_clear = None, now
        if (tier := storage_tier(event.medium, exact=self._exact_media)) is not StorageTier.GPU:
            self._clear_tier(tier, out)
            return
        self._drop_all("the engine cleared its cache", out)
        self.completeness.set_mark(True, "empty since the engine cleared its cache", now, out)

    def _drop_all(self, reason: str, out: list[Change], *, always: bool = False) -> None:
        """Drops every block of every tier, orphans and parked blocks included."""
        copies = 0
        for row in self.blocks.by_handle:
            copies |= self.blocks.counts[row]
        self.unknown_tiers.update(
            tier for tier in (StorageTier.CPU, StorageTier.DISK) if copies >> TIER_SHIFT[tier] & MAX_COPIES
        )
        if len(self.blocks) or always:
            out.append(InstanceCleared(self.instance, self.epoch, reason))
        self.blocks = BlockTable()
        self.adapters.on_cache_cleared(self.blocks)
        self.completeness.doubt = ""  # nothing is parked any more; the caller sets the mark
        self._orphans = OrphanBlocks(self.limits.kv_orphans_per_instance, self.limits.kv_orphans_bytes)

    def _clear_tier(self, tier: StorageTier, out: list[Change]) -> None:
        """Removes all copies in one tier, for an engine whose clear names the tier."""
        self.adapters.scanned_rows += len(self)
        for table in (self.blocks, *self.adapters):
            for row in list(table.by_handle):
                if tier in INSTANCE_TIERS and (copies := table.counts[row] >> TIER_SHIFT[tier] & MAX_COPIES):
                    self._remove_copies(table, row, tier, copies, out)

    def _tier_of(self, event: StoredEvent | RemovedEvent) -> StorageTier:
        medium, locality = event.medium, event.locality
        if (known := self._tiers.get(medium) if locality is None else None) is None:
            known = storage_tier(medium, locality, shared=self._shared_media, exact=self._exact_media)
            if locality is None and len(self._tiers) < _MAX_MEDIA:
                self._tiers[medium] = known
        return known

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
