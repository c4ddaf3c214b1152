"""The events of usual batches, applied to the blocks of an instance in one step.

Why: while an engine decodes, a batch is a block or two. Steps, and an object for each part of an
event, then cost more than the blocks.
"""

from abc import abstractmethod
from typing import Final

from fairlead_kvstore.blockstore.block_hash import TOKEN_BYTES, chain_root
from fairlead_kvstore.blockstore.block_table import BlockTable, tick_of
from fairlead_kvstore.blockstore.changes import BlocksStored, Change
from fairlead_kvstore.blockstore.completeness import Completeness
from fairlead_kvstore.blockstore.event_runs.orphan_blocks import OrphanBlocks
from fairlead_kvstore.blockstore.event_runs.pending_run import HANDLE_BYTES, RunBytes, handle_list
from fairlead_kvstore.blockstore.lora_generations import MAX_SCANNED_ROWS, LoraGenerations
from fairlead_kvstore.blockstore.storage_tiers import MediumTiers, StorageTier
from fairlead_kvstore.blockstore.types import EventCounters
from fairlead_kvstore.native import ScannedBatch, ScannedEvent

FULL_ATTENTION_KINDS: Final = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
_UNKNOWN_KINDS: Final = frozenset({None, "unknown"})
_REMOVED_PARTS: Final = 2  # of a scanned event, which has more where blocks are stored


class ScannedEvents:
    """The part of ``InstanceBlocks`` that applies scanned events."""

    instance: str
    model_key: str
    blocks: BlockTable
    adapters: LoraGenerations
    completeness: Completeness
    counters: EventCounters
    block_size: int | None
    group: int | None
    hybrid: bool
    names_extras: bool
    awaited_until: float | None
    unknown_tiers: set[StorageTier]
    _secret: bytes
    _roots: dict[str | None, int]
    _tiers: MediumTiers
    _orphans: OrphanBlocks

    def apply_scanned(self, batch: ScannedBatch, now: float, out: list[Change]) -> int:
        """Applies the events of a usual batch, and returns how many: up to the first that has
        further effects. ``apply_steps`` must apply the rest.
        """
        _, medium, _, events = batch
        if self.awaited_until is not None or len(self._orphans) or self.adapters.parked or self.completeness.doubt:
            return 0
        self.adapters.on_batch(now)
        if self.adapters.scanned_rows > MAX_SCANNED_ROWS or self._tiers.find(medium, None) is not StorageTier.GPU:
            return 0
        tick, done = tick_of(now), 0
        for event in events:
            if len(event) == _REMOVED_PARTS:
                self._remove_scanned(event, tick, out)
            elif not self._add_scanned(event, tick, out):
                break
            done += 1
        return done

    def _add_scanned(self, event: ScannedEvent, tick: int, out: list[Change]) -> bool:
        """Adds the blocks of a stored event. Returns False, and changes nothing, for a block whose
        parent is unknown, or not yet marked as used.
        """
        parent, handles, tokens, block_size, has_extra_keys, group, kind = event
        blocks = self.blocks
        if parent < 0:
            start = (self._chain_root(None), -1)
        else:
            row = blocks.by_handle.find(parent)
            if not row or blocks.ticks[row] < tick:
                return False
            start = (blocks.owns[row], blocks.depths[row])
        if not self._is_counted_group(group, kind, learn=True):
            self.counters.other_groups += 1
            return True
        self.block_size = block_size
        self.names_extras = self.names_extras or has_extra_keys
        if self.unknown_tiers:
            self.unknown_tiers.discard(StorageTier.GPU)
        count = len(handles) // HANDLE_BYTES
        self.counters.stored += count
        run = RunBytes(handles, tokens, block_size * TOKEN_BYTES, StorageTier.GPU, tick)
        found: list[BlocksStored] = []
        done, own, is_open = run.add_to(blocks, start, 0, self.instance, found)
        if done < count:
            rest = run.rest(done, found[-1] if is_open else None)
            found += rest.add_to(blocks, (own, start[1] + done), 0, False, self.instance, self.counters)
        out += found
        return True

    def _remove_scanned(self, event: ScannedEvent, tick: int, out: list[Change]) -> None:
        handles, group = event
        if not self._is_counted_group(group, None, learn=False):
            self.counters.other_groups += 1
            return
        keys = handle_list(handles)
        self.counters.removed += len(keys)
        for key in keys:
            if not self._remove_copy(key, StorageTier.GPU, tick, out):
                self.counters.unknown += 1

    @abstractmethod
    def _remove_copy(self, key: int, tier: StorageTier, tick: int, out: list[Change]) -> bool:
        """Removes one copy of the block with the handle ``key``; returns False if it has none."""

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
