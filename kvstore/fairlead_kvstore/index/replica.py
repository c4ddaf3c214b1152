"""A queryable replica of the index of one model: which instances have a chain of blocks, how far,
and in which tier.

A table maps a block hash to a bit mask with three bits for each instance (GPU, CPU, disk). Equal
masks are one object (``native/dict_mask_table.py``), so a walk along a chain mostly meets the same
one again, which needs no arithmetic.

**The walk is exact.** A gateway's approximate prefix index may bisect, since it drops only the ends
of chains. Engines may lose a block in the middle (it moved to another tier, or only a neighbour was
evicted). So every block is looked up until no instance is left, at the cost of one lookup in C for
each block.

**Equal chains are queried repeatedly**, by every turn of a conversation and every user of a long
system prompt. The result depends on the masks of its blocks alone. Where instances reach different
depths, or use slower tiers, a result costs some hundred steps. It is cached under these masks, up
to the first block that no instance has. It is found again until a block of it is stored or lost,
without invalidation, and prompts that differ only after it share it.

**A slower tier continues where the faster one ends**, as when an engine serves a prompt: depths
are cumulative, and a tier adds the difference. Hints of shared stores come last, and only after
blocks of an instance or from the start.

**Removal of an instance** takes no time: its bits are *retired*, masked out of every result. They
are swept from the masks gradually, with every batch and with each call of ``sweep``. Then the bits
are reused for the next instance. While too many are retired, no other instance gets bits.

Why: an engine may clear its cache with each event. To sweep all blocks at once takes a second.

The results of an index replica, as msgspec structs.

Why: compiled modules cannot contain structs, so these are apart from ``replica.py``.
"""

import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.block_table import MAX_COPIES, TIER_SHIFT
from fairlead_kvstore.blockstore.changes import (
    BlocksRemoved,
    BlocksStored,
    Change,
    CompletenessChanged,
    HintsAdded,
    HintsExpired,
    InstanceCleared,
    InstanceDetached,
)
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier
from fairlead_kvstore.native.dict_mask_table import new_mask_table


class InstanceMatch(msgspec.Struct, frozen=True, gc=False):
    """The match of a chain at one instance.

    blocks: cached blocks from the chain's start: in the GPU, up to CPU, up to disk, and with hints.
    """

    instance: str
    blocks: tuple[int, int, int, int]


class KnownCompleteness(msgspec.Struct, frozen=True, gc=False):
    """The completeness of an instance: complete or not, and if not, why and since when (monotonic
    seconds).
    """

    complete: bool
    reason: str
    since: float


_LIMITS: Final = Limits()
INDEX_MIRROR_BLOCKS: Final = 12_000_000
"""Limit: different blocks of one model in a mirror, 90 bytes to 1.8 kB each; more are not credited.
"""
_TIERS: Final = len(INSTANCE_TIERS)
_MAX_DEPTH_RESULTS: Final = 4_096
_MAX_CHAIN_RESULTS: Final = 256
_MAX_CHAIN_BLOCKS: Final = 4_096
_MAX_CHAIN_BITS: Final = 1_024
"""Larger masks, of some three hundred instances, cost more to look up than the cached result
saves.
"""
_MIN_CHAIN_STEPS: Final = 3  # a result of fewer depths is cheaper to compute than to look up
_MIN_SWEEP: Final = 256
_SWEEP_PER_BLOCK: Final = 4
_MAX_RETIRED: Final = 1_024  # above, no other instance gets bits, which must not grow without end


class IndexReplica:
    """A replica of the KV-cache index of one model. Pure: no clock, no I/O.

    The owner calls ``expire`` and, when idle, ``sweep``. New blocks beyond ``max_blocks``
    are left out and counted (``dropped``). So are those of more instances than a fleet may have:
    a mask has bits for each. So are those of new instances while too many are retired.
    """

    def __init__(self, *, max_blocks: int = INDEX_MIRROR_BLOCKS, max_instances: int = _LIMITS.instances) -> None:
        self._max_blocks, self._max_instances = max_blocks, max_instances
        self._max_hints, self._hint_seconds = _LIMITS.kv_shared_blocks, _LIMITS.kv_shared_seconds
        self._masks = new_mask_table()
        self._slots: dict[str, int] = {}
        self._names: list[str] = []
        self._by_bit: dict[int, str] = {}
        self._depth_results: dict[tuple[int, int], tuple[InstanceMatch, ...]] = {}
        self._chain_results: dict[tuple[int | None, ...], tuple[InstanceMatch, ...]] = {}
        self._free: list[int] = []
        self._retired: list[int] = []
        self._sweeping: list[int] = []
        self._is_sweeping = False
        self._retired_bits = 0
        self._gpu_bits = 0  # the GPU bits of all slots
        self._has_slow_tiers = False  # a block was in a slower tier at some time
        self._completeness: dict[str, KnownCompleteness] = {}
        self._hints: dict[int, float] = {}
        self.dropped = 0

    def __len__(self) -> int:
        """Returns the number of blocks; removed instances count until they are swept."""
        return len(self._masks)

    @property
    def hint_count(self) -> int:
        """The number of blocks that are probably in a shared store."""
        return len(self._hints)

    # --- queries --------------------------------------------------------------------------------------------------------

    def match(self, hashes: Sequence[int]) -> tuple[InstanceMatch, ...]:
        """Returns the instances with the chain's first block, and their depths; the deepest in the
        GPU come first.

        If a shared store has the first block, all instances are returned.
        """
        if not hashes:
            return ()
        if self._hints:
            return self._tiered_matches(hashes, self._walk(hashes))
        if hashes[0] not in self._masks:
            return ()
        if self._has_slow_tiers:
            return self._cached_matches(hashes)
        gpu = self._walk(hashes, max_depths=_MIN_CHAIN_STEPS)
        return self._cached_matches(hashes) if len(gpu) > _MIN_CHAIN_STEPS else self._gpu_matches(gpu)

    def holders(self, block_hash: int) -> dict[str, tuple[StorageTier, ...]]:
        """Returns the instances and tiers of one block."""
        return self._holders_of((self._masks.get(block_hash) or 0) & ~self._retired_bits)

    def holder_sets(self) -> Iterator[tuple[Mapping[str, tuple[StorageTier, ...]], int]]:
        """Yields sets of instances and tiers, each with the number of blocks that exactly these
        have. Reads every block.

        A set may come more than once until removed instances are swept.
        """
        for mask, blocks in Counter(map(self._masks.get, self._masks)).items():
            if mask is not None and (alive := mask & ~self._retired_bits):
                yield self._holders_of(alive), blocks

    def count_unique(self, hashes: Iterable[int]) -> dict[str, int]:
        """Returns, by instance, how many of these blocks no other instance has. Instances without
        such a block are left out.
        """
        found: dict[str, int] = {}
        for mask, blocks in Counter(map(self._masks.get, hashes)).items():
            holders = self._holders_of(mask & ~self._retired_bits) if mask is not None else {}
            if len(holders) == 1:
                (only,) = holders
                found[only] = found.get(only, 0) + blocks
        return found

    def blocks_of(self, instance: str) -> Iterator[tuple[int, StorageTier]]:
        """Yields every block of an instance with each of its tiers; reads every block. The replica
        must not change meanwhile.
        """
        slot = self._slots.get(instance)
        if slot is None:
            return
        for block_hash in self._masks:
            bits = (self._masks.get(block_hash) or 0) >> slot * _TIERS
            for tier in INSTANCE_TIERS:
                if bits >> tier & 1:
                    yield block_hash, tier

    def hint_age_seconds(self, block_hash: int, now: float) -> float | None:
        """Returns the seconds since a block's last write to a shared store; None without a hint.

        The result may be too large by half of a hint's lifetime.

        Why: the store does not report evictions, so an old hint is less likely to be true.
        """
        until = self._hints.get(block_hash)
        return None if until is None else max(0.0, self._hint_seconds - (until - now))

    def completeness(self, instance: str) -> KnownCompleteness | None:
        """Returns the completeness of an instance; None for an unknown instance."""
        return self._completeness.get(instance)

    def instances(self) -> tuple[str, ...]:
        """Returns all known instances."""
        return tuple(self._completeness | self._slots)

    # --- changes ----------------------------------------------------------------------------------------------------------

    def apply(self, changes: Iterable[Change]) -> None:
        """Applies changes in their order; repetition does no harm."""
        work = 0
        for change in changes:
            if isinstance(change, BlocksStored):
                work += len(change.hashes)
                if self._has_slot_for(change.instance):
                    bit = self._bit(change.instance, change.tier)
                    self.dropped += self._masks.add(change.hashes, bit, self._max_blocks)
                else:
                    self.dropped += len(change.hashes)
            elif isinstance(change, BlocksRemoved):
                work += len(change.hashes)
                if change.instance in self._slots:
                    self._masks.remove(change.hashes, self._bit(change.instance, change.tier))
            elif isinstance(change, HintsAdded):
                self._add_hints(change.hashes, change.until)
            elif isinstance(change, HintsExpired):
                for block_hash in change.hashes:
                    self._hints.pop(block_hash, None)
            elif isinstance(change, CompletenessChanged):
                if self._has_room_for(change.instance, self._completeness):
                    known = KnownCompleteness(change.complete, change.reason, change.since)
                    self._completeness[change.instance] = known
            elif isinstance(change, InstanceCleared):
                self._retire(change.instance)
            elif isinstance(change, InstanceDetached):
                self._retire(change.instance)
                self._completeness.pop(change.instance, None)
        if self._retired_bits:
            self.sweep(_MIN_SWEEP + work * _SWEEP_PER_BLOCK)

    def load_rows(self, instance: str, block_hashes: "array[int]", counts: "array[int]") -> None:
        """Adds the rows of a snapshot: block hashes, and copies by tier (``TIER_SHIFT``); rows of 0
        copies are empty.
        """
        if not self._has_slot_for(instance):
            self.dropped += len(block_hashes)
            return
        slot = self._slot(instance)
        bits: dict[int, int] = {}
        for count in set(counts):
            if count:
                bits[count] = _tier_bits(count) << slot * _TIERS
                self._has_slow_tiers |= _tier_bits(count) > 1
        self.dropped += self._masks.load(block_hashes, counts, bits, self._max_blocks)

    def expire(self, now: float) -> list[int]:
        """Removes hints that have expired at ``now`` (monotonic seconds) and returns their block
        hashes.
        """
        over = []
        for block_hash, until in self._hints.items():
            if until > now:
                break
            over.append(block_hash)
        for block_hash in over:
            del self._hints[block_hash]
        return over

    def sweep(self, max_blocks: int) -> bool:
        """Clears retired bits from up to ``max_blocks`` blocks; returns whether more remain."""
        if not self._retired_bits:
            return False
        if not self._is_sweeping:
            self._sweeping, self._retired = self._retired, []
            self._is_sweeping = True
            self._masks.begin_sweep()
        if self._masks.sweep(self._retired_bits, max_blocks):
            self._is_sweeping = False
            self._finish_sweep()
        return bool(self._retired_bits)

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _has_room_for(self, instance: str, known: Mapping[str, object]) -> bool:
        return instance in known or len(known) < self._max_instances

    def _has_slot_for(self, instance: str) -> bool:
        is_full = len(self._retired) + len(self._sweeping) >= _MAX_RETIRED
        return instance in self._slots or (not is_full and len(self._slots) < self._max_instances)

    def _holders_of(self, mask: int) -> dict[str, tuple[StorageTier, ...]]:
        found: dict[str, tuple[StorageTier, ...]] = {}
        while mask:
            slot = (mask.bit_length() - 1) // _TIERS
            bits = mask >> slot * _TIERS
            found[self._names[slot]] = tuple(tier for tier in INSTANCE_TIERS if bits >> tier & 1)
            mask ^= bits << slot * _TIERS
        return found

    def _gpu_matches(self, gpu: list[tuple[int, int]]) -> tuple[InstanceMatch, ...]:
        """Returns the matches of a chain that is in the GPU only, from the result of ``_walk``."""
        answers = self._depth_results
        if len(gpu) == 1:
            return answers.get(gpu[0]) or self._matches_at_depth(gpu[0])
        found: list[InstanceMatch] = []
        for reach in reversed(gpu):
            found += answers.get(reach) or self._matches_at_depth(reach)
        return tuple(found)

    def _cached_matches(self, hashes: Sequence[int]) -> tuple[InstanceMatch, ...]:
        """Returns the matches of a chain, cached under the masks of its blocks. Must not be used
        while there are hints, which are not in the masks.
        """
        masks: list[int | None] = list(self._masks.masks_of(hashes))
        if masks[-1] is None:
            del masks[masks.index(None) :]
        if self._gpu_bits.bit_length() > _MAX_CHAIN_BITS or len(masks) > _MAX_CHAIN_BLOCKS:
            return self._compute_matches(hashes)
        key = tuple(masks)
        found = self._chain_results.get(key)
        if found is None:
            if len(self._chain_results) >= _MAX_CHAIN_RESULTS:
                self._chain_results.clear()
            found = self._chain_results[key] = self._compute_matches(hashes)
        return found

    def _compute_matches(self, hashes: Sequence[int]) -> tuple[InstanceMatch, ...]:
        gpu = self._walk(hashes)
        return self._tiered_matches(hashes, gpu) if self._has_slow_tiers else self._gpu_matches(gpu)

    def _walk(self, hashes: Sequence[int], fold: int = 0, max_depths: int = sys.maxsize) -> list[tuple[int, int]]:
        """Returns (depth, GPU bits of the instances with exactly that depth), shallowest first.

        fold: 1 counts CPU too, 2 CPU and disk. max_depths: the walk ends early when it has more.
        """
        found: list[tuple[int, int]] = []
        alive = self._gpu_bits & ~self._retired_bits
        if not alive:
            return found
        last: int | None = -1
        depth = -1
        masks: Iterable[int | None] = self._masks.masks_of(hashes)
        for mask in masks:
            depth += 1
            if mask is last:
                continue
            last = mask
            still = 0
            if mask is not None:
                if fold:
                    mask |= mask >> 1 if fold == 1 else mask >> 1 | mask >> 2
                still = alive & mask
            if still != alive:
                if depth:
                    found.append((depth, alive ^ still))
                if not still or len(found) > max_depths:
                    return found
                alive = still
        found.append((len(hashes), alive))
        return found

    def _matches_at_depth(self, reach: tuple[int, int]) -> tuple[InstanceMatch, ...]:
        """Returns the instances with this depth in the GPU and no blocks in slower tiers; results
        are cached.
        """
        depth, mask = reach
        blocks = (depth, depth, depth, depth)
        if len(self._depth_results) >= _MAX_DEPTH_RESULTS:
            self._depth_results.clear()
        found = self._depth_results[reach] = tuple(InstanceMatch(name, blocks) for name in self._instances_of(mask))
        return found

    def _instances_of(self, mask: int) -> list[str]:
        """Returns the instances whose GPU bits are in the mask."""
        names, found = self._by_bit, []
        while mask:
            low = mask & -mask
            found.append(names[low])
            mask ^= low
        return found

    def _tiered_matches(self, hashes: Sequence[int], gpu: list[tuple[int, int]]) -> tuple[InstanceMatch, ...]:
        """Returns the matches of a chain that may be in several tiers or in a shared store.

        gpu: the result of ``_walk`` for the GPU.
        """
        levels = [gpu, self._walk(hashes, 1), self._walk(hashes, 2)] if self._has_slow_tiers else [gpu, gpu, gpu]
        depths: list[dict[str, int]] = []
        for level, found in enumerate(levels):
            if level and found == levels[level - 1]:
                depths.append(depths[-1])
            else:
                depths.append({name: depth for depth, mask in found for name in self._instances_of(mask)})
        fast, middle, slow = depths
        last = self._extend_by_hints(hashes, slow) if self._hints else slow
        matches = [
            InstanceMatch(name, (fast.get(name, 0), middle.get(name, 0), slow.get(name, 0), depth))
            for name, depth in last.items()
        ]
        matches.sort(key=_order, reverse=True)
        return tuple(matches)

    def _extend_by_hints(self, hashes: Sequence[int], reached: dict[str, int]) -> dict[str, int]:
        """Returns the depths with the hints of a shared store, which continue where an instance's
        tiers end. They count for every instance alike.
        """
        hints, masks = self._hints, self._masks
        names = self.instances() if hashes[0] in hints else tuple(reached)
        found = {}
        for name in names:
            slot = self._slots.get(name)
            mine = 0 if slot is None else (1 << _TIERS) - 1 << slot * _TIERS
            depth = reached.get(name, 0)
            while depth < len(hashes) and (hashes[depth] in hints or (masks.get(hashes[depth]) or 0) & mine):
                depth += 1
            found[name] = depth
        return found

    def _add_hints(self, hashes: list[int], until: float) -> None:
        hints = self._hints
        for block_hash in hashes:
            hints.pop(block_hash, None)  # the order is by age
            hints[block_hash] = until
        while len(hints) > self._max_hints:
            del hints[next(iter(hints))]

    def _bit(self, instance: str, tier: StorageTier) -> int:
        if tier is not StorageTier.GPU:
            self._has_slow_tiers = True
        return 1 << self._slot(instance) * _TIERS + tier

    def _slot(self, instance: str) -> int:
        slot = self._slots.get(instance)
        if slot is None:
            if self._free:
                slot = self._free.pop()
                self._names[slot] = instance
                self._depth_results.clear()
                self._chain_results.clear()
            else:
                slot = len(self._names)
                self._names.append(instance)
                self._gpu_bits |= 1 << slot * _TIERS
            self._slots[instance] = slot
            self._by_bit[1 << slot * _TIERS] = instance
        return slot

    def _retire(self, instance: str) -> None:
        slot = self._slots.pop(instance, None)
        if slot is None:
            return
        self._retired.append(slot)
        self._chain_results.clear()  # retired bits are still in the masks
        self._retired_bits |= (1 << _TIERS) - 1 << slot * _TIERS

    def _finish_sweep(self) -> None:
        """Frees the swept bits, which no block has any more, for other instances."""
        for slot in self._sweeping:
            self._retired_bits &= ~((1 << _TIERS) - 1 << slot * _TIERS)
        self._free += self._sweeping
        self._sweeping = []


def _order(match: InstanceMatch) -> tuple[int, int, int, int]:
    return match.blocks


def _tier_bits(count: int) -> int:
    return sum(1 << tier for tier in INSTANCE_TIERS if count >> TIER_SHIFT[tier] & MAX_COPIES)
