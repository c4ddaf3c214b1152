"""The block store: the blocks of all instances of one indexer, and how completely they are known.

    bytes ──decode──▶ events ──InstanceBlocks──▶ changes ──▶ Redis, replicas
      ▲                                             ▲
      └── event sequence ── lost, restarted, suspended, complete

An instance is an engine process and one data-parallel rank. Its events, in order, are the only
source. The store has no clock, no socket and no copy of other state, so a recorded stream gives the
same changes again. An instance is ``complete`` when everything since an empty cache was read;
otherwise it states why not, and since when.

**No ghosts; misses are allowed.** Where events are missing, blocks are dropped, since a lost batch
may contain removals. A forgotten block costs one recomputation. A block that is wrongly believed to
be cached draws requests to an engine that must compute all of them.

**Memory is bounded** per instance and in total (``kv_blocks…`` in the limits; ``set_max_blocks``
lowers the total, for a Redis with less memory). Above its bound, an instance evicts an eighth of
its blocks, at most 1,024 at once. Above the total, the namespace with the most blocks gives way: in
it the model with the most, and in that the largest instances. A namespace
with less than an equal share thus keeps all its blocks. The least recently stored or used go first,
and of equally old ones the ends of chains, so that the rest is still a prefix. Of large instances,
only a part is compared at a time. Evictions are counted (``dropped``). The instance is incomplete
until its cache is cleared or it is learned again.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import snapshot as snapshots
from fairlead_kvstore.blockstore.block_table import MAX_COPIES, TIER_SHIFT, BlockTable, tick_of
from fairlead_kvstore.blockstore.changes import Change, CompletenessChanged, InstanceCleared, InstanceDetached
from fairlead_kvstore.blockstore.completeness import CompletenessMark
from fairlead_kvstore.blockstore.instance_blocks import InstanceBlocks, SharedStore
from fairlead_kvstore.blockstore.snapshot import RowParts
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier, is_shared_store, shared_store_id
from fairlead_kvstore.blockstore.types import EngineOutcome, InstanceSnapshot
from fairlead_kvstore.native import ScannedBatch

_LIMITS: Final = Limits()
_EVICTED_FRACTION: Final = 8
_MAX_EVICTED: Final = 1_024
_EVICTION_BYTES: Final = 16_384
"""The cost of one eviction, in bytes: some 7 ms."""


class BlockStore:
    """The blocks of all instances. Every method returns the changes of its instance's model in
    order.

    Blocks of other models may have to give way. Their changes wait in ``take_evictions``, to be
    called after ``apply`` and ``restore_table``.

    ``now`` is monotonic seconds. Unknown instances raise KeyError.

    counts: of each model that was ever attached, by the names of ``indexer.COUNTERS``. Unexpected
    events only count there.
    """

    def __init__(self, *, secret: bytes = b"", limits: Limits = _LIMITS) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self._secret = secret
        self._limits = limits
        self._instances: dict[str, InstanceBlocks] = {}
        self._shared_stores: dict[str, SharedStore] = {}
        self._evictions: dict[str, list[Change]] = {}
        self.block_count = 0
        """The number of rows of all instances."""
        self.max_blocks = limits.kv_blocks
        """The bound of ``block_count``, see ``set_max_blocks``."""
        self.full_at: float | None = None
        """When blocks last gave way to the bound in total, in monotonic seconds; None: never."""

    def __contains__(self, instance: object) -> bool:
        return instance in self._instances

    def set_max_blocks(self, max_blocks: int, now: float) -> None:
        """Sets the bound of ``block_count``, which is ``kv_blocks`` at most.

        Blocks above it give way. ``take_evictions`` has the changes of all models.
        """
        self.max_blocks = max(1, min(max_blocks, self._limits.kv_blocks))
        while self._evict_above((), now, "", []):
            pass

    @property
    def bytes(self) -> int:
        """Memory of the tables of all instances, in bytes."""
        return sum(item.blocks.bytes for item in self._instances.values())

    # --- instances ------------------------------------------------------------------------------------------------------

    def attach(self, instance: str, model_key: str, now: float) -> list[Change]:
        """Adds an instance of ``model_key`` (``namespace/name``), without any blocks.

        If it is attached already, it is detached first.
        """
        changes = self.detach(instance, "attached again") if instance in self._instances else []
        counts = self.counts.setdefault(model_key, Counter())
        shared = self._shared_stores.get(shared_store_id(model_key))
        if shared is None:
            shared = SharedStore(model_key, self._limits, counts, now)
            self._shared_stores[shared.instance] = shared
        item = InstanceBlocks(instance, model_key, shared, self._limits, self._secret, counts, now)
        self._instances[instance] = item
        return [*changes, CompletenessChanged(instance, *item.completeness.mark)]

    def detach(self, instance: str, reason: str) -> list[Change]:
        """Removes an instance. With the last one of a model, the model's shared store goes too."""
        item = self._instances.pop(instance)
        self.block_count -= len(item)
        changes: list[Change] = [InstanceCleared(instance, item.epoch, reason), InstanceDetached(instance)]
        shared = item.shared
        if shared is not None and not any(other.shared is shared for other in self._instances.values()):
            del self._shared_stores[shared.instance]
            if shared.instance in self._instances:
                changes += self.detach(shared.instance, reason)
        return changes

    def take_snapshot(self, instance: str, wall: float) -> tuple[InstanceSnapshot, RowParts]:
        """Returns an instance's state for the next indexer, and the parts of its rows by name.

        wall: Unix time minus monotonic time, in seconds.
        """
        return snapshots.take_snapshot(self._instances[instance], wall)

    def restore_table(
        self, instance: str, snapshot: InstanceSnapshot, table: BlockTable, wall: float, now: float
    ) -> list[Change]:
        """Restores a snapshot of an attached instance that has no blocks, or of its model's shared
        store, with the table that ``snapshot.table_steps`` returned. An instance stays suspended
        until ``StreamResumed``.

        The blocks are not reported as changes, because consumers have them from where the snapshot
        was kept. Those above the bounds stay until ``evict_some``.
        """
        out: list[Change] = []
        item = self._shared_stores[instance] if is_shared_store(instance) else self._instances[instance]
        before = len(item)
        snapshots.install_table(item, snapshot, table, wall, now, out)
        if isinstance(item, SharedStore):
            self._instances[instance] = item
            item.on_restored()
            out.clear()  # it has no stream that would be resumed
        self.block_count += len(item) - before
        return out

    def evict_some(self, now: float) -> bool:
        """Evicts some of the blocks above the bounds: some 7 ms. Returns whether there were any.

        ``take_evictions`` has the changes of all models.
        """
        return self._evict_above(self._instances.values(), now, "", [])

    # --- stream ---------------------------------------------------------------------------------------------------------

    def apply(self, instance: str, outcome: EngineOutcome, now: float, out: list[Change]) -> Iterator[int]:
        """Applies what an instance's stream or the fleet reports. Yields the cost in bytes of each
        step beyond the events of a batch: of what they have caused, and of evictions.

        Between two steps, nothing else of this instance may be applied.
        """
        item = self._instances[instance]
        shared, steps, cost = self._shared_stores[shared_store_id(item.model_key)], item.apply(outcome, now, out), 0
        while cost >= 0:
            before = len(item) + len(shared)
            cost = next(steps, -1)
            self.block_count += len(item) + len(shared) - before
            if len(shared):
                self._instances[shared.instance] = shared
            while self._evict_above((item, shared), now, item.model_key, out):
                yield _EVICTION_BYTES
            if cost >= 0:
                yield cost

    def apply_at_once(self, instance: str, outcome: EngineOutcome, now: float) -> list[Change]:
        """Applies an outcome in one step, and returns the changes."""
        out: list[Change] = []
        for _ in self.apply(instance, outcome, now, out):
            pass
        return out

    def apply_scanned(self, instance: str, batch: ScannedBatch, now: float, out: list[Change]) -> int:
        """Applies the events of a usual batch in one step, and returns how many. ``apply`` must
        apply the rest; all of them where blocks might have to give way.
        """
        item, (_, _, blocks, _) = self._instances[instance], batch
        before = len(item)
        if before + blocks > self._limits.kv_blocks_per_instance or self.block_count + blocks > self.max_blocks:
            return 0
        done = item.apply_scanned(batch, now, out)
        self.block_count += len(item) - before
        return done

    def take_evictions(self) -> Mapping[str, list[Change]]:
        found, self._evictions = self._evictions, {}
        return found

    def expire(self, now: float) -> bool:
        """Removes expired blocks of shared stores; call it every few seconds. Returns whether more
        remain: one call takes some milliseconds. ``take_evictions`` has the changes.
        """
        has_more = False
        for shared in self._shared_stores.values():
            before = len(shared)
            out: list[Change] = []
            has_more |= shared.expire(now, out)
            if out:
                self._evictions.setdefault(shared.model_key, []).extend(out)
            self.block_count += len(shared) - before
        return has_more

    # --- queries ------------------------------------------------------------------------------------------------------

    def model(self, model_key: str) -> "ModelBlocks":
        return ModelBlocks(self._instances, model_key)

    def content(self, instance: str) -> Iterator[tuple[int, StorageTier]]:
        """Yields every block of an instance with each tier it is in; one with a second handle may
        come twice.
        """
        blocks = self._instances[instance].blocks
        for row in blocks.by_handle:
            for tier in INSTANCE_TIERS:
                if blocks.counts[row] >> TIER_SHIFT[tier] & MAX_COPIES:
                    yield blocks.block_hashes[row], tier

    def instance(self, instance: str) -> InstanceBlocks:
        return self._instances[instance]

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _evict_above(self, places: Iterable[InstanceBlocks], now: float, model_key: str, out: list[Change]) -> bool:
        """Evicts some blocks if one of these places, or all together, have too many; returns
        whether it did. Changes of ``model_key`` go to ``out``.
        """
        above = [place for place in places if len(place) > self._limits.kv_blocks_per_instance]
        if not above:
            if self.block_count <= self.max_blocks:
                return False
            self.full_at = now
        item = above[0] if above else self._largest_instance()
        before = len(item)
        changes = out if item.model_key == model_key else self._evictions.setdefault(item.model_key, [])
        item.evict(max(1, min(before // _EVICTED_FRACTION, _MAX_EVICTED)), now, changes)
        self.block_count += len(item) - before
        return True

    def _largest_instance(self) -> InstanceBlocks:
        """Returns the largest instance of the model with the most blocks in the namespace with the
        most blocks.
        """
        namespaces: Counter[str] = Counter()
        models: Counter[str] = Counter()
        sizes = [(item, len(item)) for item in self._instances.values()]
        for item, blocks in sizes:
            namespaces[item.model_key.partition("/")[0]] += blocks
            models[item.model_key] += blocks
        namespace = max(namespaces, key=namespaces.__getitem__)
        model_key = max((key for key in models if key.partition("/")[0] == namespace), key=models.__getitem__)
        found = [(blocks, item) for item, blocks in sizes if item.model_key == model_key]
        return max(found, key=lambda pair: pair[0])[1]


class ModelBlocks:
    """The blocks of one model's instances, as the engines reported them: a view of a store."""

    def __init__(self, instances: Mapping[str, InstanceBlocks], model_key: str) -> None:
        self._instances = instances
        self._model_key = model_key

    def instances(self) -> list[str]:
        items = self._instances.items()
        return [name for name, item in items if item.model_key == self._model_key and item.shared is not None]

    def tiers(self, instance: str, block_hash: int) -> int:
        """Returns where an instance, or the shared store, has a block: a bit for each tier, 1 for
        the GPU; 0: nowhere.
        """
        item = self._instances.get(instance)
        copies = 0 if item is None else item.blocks.copies(block_hash)
        found = 0
        for tier in INSTANCE_TIERS:
            if copies >> TIER_SHIFT[tier] & MAX_COPIES:
                found |= 1 << tier
        return found

    def completeness(self, instance: str) -> CompletenessMark | None:
        """Returns the completeness of an instance; None for an unknown instance."""
        item = self._instances.get(instance)
        return None if item is None else item.completeness.mark

    def block_size(self, instance: str) -> int | None:
        """Returns the tokens of an instance's blocks; None while they are unknown."""
        item = self._instances.get(instance)
        return None if item is None else item.block_size

    def touch(self, instance: str, hashes: Sequence[int], now: float) -> None:
        """Marks the cached blocks of a dispatched prompt as used, which no event reports."""
        item, depth, end = self._instances.get(instance), 0, len(hashes)
        while item is not None and depth < end:  # by bisection, since engines evict the ends of chains first
            middle = (depth + end) >> 1
            if item.blocks.copies(hashes[middle]) & MAX_COPIES:
                depth = middle + 1
            else:
                end = middle
        if item is not None and depth:
            item.blocks.touch(hashes[depth - 1], tick_of(now))

    def count_unique(self, instance: str, used_since: float, max_rows: int) -> tuple[int, int, int]:
        """Returns how many blocks an instance has, and how many of them no other instance of the
        model has. The third number is those of the latter used at ``used_since`` or later.

        Of a table with more rows, some ``max_rows`` are counted, spread over the whole.
        """
        table = self._instances[instance].blocks
        others = [self._instances[name].blocks for name in self.instances() if name != instance]
        used_tick, counted, unique, used = tick_of(used_since), 0, 0, 0
        for row in range(1, len(table.counts), len(table.counts) // max_rows + 1):
            block_hash = table.block_hashes[row]
            if not table.counts[row] or table.by_block_hash.find(block_hash) != row:
                continue
            counted += 1
            if not any(other.copies(block_hash) for other in others):
                unique += 1
                used += table.ticks[row] >= used_tick
        blocks = len(table.by_block_hash)
        scale = blocks / max(1, counted)
        return blocks, round(unique * scale), round(used * scale)
