"""The model of the truth: all instances of one indexer, what they hold, and how sure that is.

    bytes ──decode──▶ events ──Slice──▶ changes ──▶ Redis, mirrors
      ▲                                    ▲
      └── sequence (unbroken?) ── lost, restarted, suspended, whole

An instance is a *slice*: an engine process and one data-parallel rank. Its events, in order, are the only source; the truth has
no clock, no socket and no copy of anything else, so a recorded stream gives the same changes again. What is certain is told from
what is not: a slice is ``complete`` when everything since an empty cache was seen, and says otherwise why not and since when.

**Ghosts never, misses allowed.** Where something is missing, blocks are dropped, not believed: a lost batch may have held
removals. A block that is forgotten costs one recomputation; a block that is not there draws requests to an engine that must
compute them all.

**Memory is bounded**, per instance and in total (``kv_blocks…`` in the limits). Beyond, the instance, or the one that holds most,
forgets an eighth of its blocks: those that were stored or used least recently, of equally old ones the ends of chains first, so
that what is left is still a prefix. It is counted (``dropped``) and the slice is marked incomplete until its cache is cleared or
it is learned anew.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import snapshot as snapshots
from fairlead_kvstore.blockstore.block_table import MAX_COPIES, TIER_SHIFT, time_of
from fairlead_kvstore.blockstore.changes import Change, CompletenessChanged, InstanceCleared, InstanceDetached
from fairlead_kvstore.blockstore.instance_blocks import InstanceBlocks
from fairlead_kvstore.blockstore.shared_store_hints import SharedStoreHints
from fairlead_kvstore.blockstore.snapshot import RowParts
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier
from fairlead_kvstore.blockstore.types import InstanceSnapshot, InstanceState
from fairlead_kvstore.events.payloads import EventBatch

_LIMITS: Final = Limits()
_EVICTED_FRACTION: Final = 8


class BlockStore:
    """Every method returns what it changed, in order. ``now`` is monotonic seconds. Unknown instances raise KeyError."""

    def __init__(self, *, secret: bytes = b"", limits: Limits = _LIMITS) -> None:
        self._secret = secret
        self._limits = limits
        self._instances: dict[str, InstanceBlocks] = {}
        self._shared_store_hints: dict[str, SharedStoreHints] = {}
        self._block_count = 0

    def __contains__(self, instance: object) -> bool:
        return instance in self._instances

    @property
    def block_count(self) -> int:
        """Rows of all slices."""
        return self._block_count

    @property
    def bytes(self) -> int:
        """What the tables of all slices take."""
        return sum(item.bytes for item in self._instances.values())

    # --- instances ------------------------------------------------------------------------------------------------------

    def attach(
        self,
        instance: str,
        model_key: str,
        now: float,
        *,
        shared_media: frozenset[str] = frozenset(),
        exact_media: frozenset[str] = frozenset(),
    ) -> list[Change]:
        """An instance that serves ``model_key`` (``namespace/name``) is read from now on; nothing is known of it.

        ``shared_media`` and ``exact_media`` (lower case) say whose a medium is where its word does not, see ``tiers.py``.
        """
        changes = self.detach(instance, "attached anew") if instance in self._instances else []
        shared = self._shared_store_hints.get(model_key)
        if shared is None:
            seconds, most = self._limits.kv_shared_seconds, self._limits.kv_shared_blocks
            shared = self._shared_store_hints[model_key] = SharedStoreHints(model_key, seconds=seconds, most=most)
        item = self._instances[instance] = InstanceBlocks(
            instance,
            model_key,
            shared,
            self._limits,
            self._secret,
            now,
            shared_media=shared_media,
            exact_media=exact_media,
        )
        begun = item.completeness
        return [*changes, CompletenessChanged(instance, begun.complete, begun.reason, begun.since)]

    def detach(self, instance: str, reason: str) -> list[Change]:
        """The instance is gone for good. The last of a model takes the model's hints with it."""
        item = self._instances.pop(instance)
        self._block_count -= len(item)
        if not any(other.model_key == item.model_key for other in self._instances.values()):
            del self._shared_store_hints[item.model_key]
        return [InstanceCleared(instance, item.epoch, reason), InstanceDetached(instance)]

    def take_snapshot(self, instance: str, wall: float) -> tuple[InstanceSnapshot, RowParts]:
        """What the next indexer needs to go on with this instance, see ``kept.py``. ``wall``: Unix time less monotonic time."""
        return snapshots.take_snapshot(self._instances[instance], wall)

    def restore_snapshot(
        self, instance: str, kept: InstanceSnapshot, rows: RowParts, wall: float, now: float
    ) -> list[Change]:
        """Be what an earlier indexer kept of an attached instance of which nothing was seen yet; broken off until ``resumed``.

        The blocks are not told as changes: whoever follows has them from where they were kept. Raises KeptError when that
        does not hold together; then nothing has changed.
        """
        out: list[Change] = []
        item = self._instances[instance]
        before = len(item)
        snapshots.restore_snapshot(item, kept, rows, wall, now, out)
        self._block_count += len(item) - before
        self._enforce_limits(item, now, out)
        return out

    def shared_store_hints(self, model_key: str) -> Iterable[tuple[int, float]]:
        """Own hashes that a store which all instances share probably has, and until when, oldest first."""
        shared = self._shared_store_hints.get(model_key)
        return () if shared is None else shared.items()

    def restore_shared_store_hints(self, model_key: str, hints: Iterable[tuple[int, float]]) -> None:
        """What an earlier indexer knew of a model's shared store, oldest first, in this process's time."""
        self._shared_store_hints[model_key].restore(hints)

    # --- its stream -----------------------------------------------------------------------------------------------------

    def apply(self, instance: str, batch: EventBatch, now: float) -> list[Change]:
        """One batch that the stream accepted."""
        out: list[Change] = []
        item = self._instances[instance]
        before = len(item)
        item.apply(batch, now, out)
        self._block_count += len(item) - before
        self._enforce_limits(item, now, out)
        return out

    def on_complete(self, instance: str, reason: str, now: float) -> list[Change]:
        """The stream says ``Complete``."""
        out: list[Change] = []
        self._instances[instance].on_complete(reason, now, out)
        return out

    def on_lost(self, instance: str, reason: str, now: float) -> list[Change]:
        """The stream says ``Lost``, or a payload could not be read."""
        return self._empty(instance, reason, now, "lost")

    def on_restarted(self, instance: str, reason: str, now: float) -> list[Change]:
        """The stream says ``Restart``."""
        return self._empty(instance, reason, now, "restarted")

    def on_suspended(self, instance: str, reason: str, now: float) -> list[Change]:
        """The stream says ``Suspended``."""
        out: list[Change] = []
        self._instances[instance].on_suspended(reason, now, out)
        return out

    def on_resumed(self, instance: str) -> list[Change]:
        """The stream says ``Resumed``."""
        out: list[Change] = []
        self._instances[instance].on_resumed(out)
        return out

    # --- what Fairlead itself knows -------------------------------------------------------------------------------------

    def on_cleared_by_fairlead(self, instance: str, now: float) -> list[Change]:
        """The engine answered a call that clears its cache (reset, sleep at level 1 or more, pause with clear)."""
        return self._empty(instance, "", now, "ours")

    def on_adapter_source(self, instance: str, name: str, place: str, now: float) -> list[Change]:
        """Where the engine loaded what it now serves under this name from (``root`` in its ``/v1/models``).

        Tell it when ``unplaced`` names it and when it changed, but only while nothing is being replayed; again is free.
        """
        out: list[Change] = []
        item = self._instances[instance]
        before = len(item)
        item.on_adapter_source(name, place, now, out)
        self._block_count += len(item) - before
        return out

    def unsourced_adapters(self, instance: str) -> list[str]:
        """Adapters that this instance stored blocks for and whose place nobody told yet: ask ``/v1/models``, then ``adapter``."""
        return self._instances[instance].adapters.unsourced_names()

    def touch(self, instance: str, hashes: Sequence[int], now: float) -> None:
        """A request was sent there for this prompt: the blocks that it hits are used now, which no event tells."""
        item = self._instances[instance]
        depth = self._depth(item, hashes, 0)
        if depth:
            item.touch(hashes[depth - 1], now)

    def expire(self, now: float) -> list[Change]:
        """Hints of shared stores that have run out; call it every few seconds."""
        out: list[Change] = []
        for shared in self._shared_store_hints.values():
            shared.expire(now, out)
        return out

    # --- questions ------------------------------------------------------------------------------------------------------

    def cached_depths(self, instance: str, hashes: Sequence[int]) -> Mapping[StorageTier, int]:
        """How many blocks from the start are reached with this tier and faster ones: what a slower tier adds is the difference."""
        item = self._instances[instance]
        found: dict[StorageTier, int] = {}
        depth = 0
        for tier in INSTANCE_TIERS:
            depth = self._depth(item, hashes, depth, tier)
            found[tier] = depth
        shared = self._shared_store_hints[item.model_key]
        while depth < len(hashes) and (
            item.blocks.copies(hashes[depth]) or shared.expires_at(hashes[depth]) is not None
        ):
            depth += 1
        found[StorageTier.REMOTE] = depth
        return found

    def age_seconds(self, instance: str, own: int, now: float) -> float | None:
        """How long ago a block was stored or used, to sixteen seconds; None when it is not held."""
        blocks = self._instances[instance].blocks
        row = blocks.by_own.find(own)
        return max(0.0, now - time_of(blocks.ticks[row])) if row else None

    def content(self, instance: str) -> Iterator[tuple[int, StorageTier]]:
        """Every block of an instance with each tier it is in; what a copy of it must hold."""
        blocks = self._instances[instance].blocks
        for row in blocks.by_own:
            copies = blocks.copies(blocks.owns[row])
            for tier in INSTANCE_TIERS:
                if copies >> TIER_SHIFT[tier] & MAX_COPIES:
                    yield blocks.owns[row], tier

    def state(self, instance: str) -> InstanceState:
        """What is known of one slice."""
        item = self._instances[instance]
        return InstanceState(
            instance=instance,
            model_key=item.model_key,
            epoch=item.epoch,
            complete=item.completeness.complete,
            reason=item.completeness.reason,
            since=item.completeness.since,
            blocks=len(item),
            orphans=item.orphan_count,
            bytes=item.bytes,
            block_size=item.block_size,
            hybrid=item.hybrid,
            vague=tuple(sorted(item.unknown_tiers)),
            evicted_age_seconds=item.evicted_age_seconds,
            counts=item.counters,
        )

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _empty(self, instance: str, reason: str, now: float, how: str) -> list[Change]:
        out: list[Change] = []
        item = self._instances[instance]
        before = len(item)
        if how == "lost":
            item.on_lost(reason, now, out)
        elif how == "restarted":
            item.on_restarted(reason, now, out)
        else:
            item.on_cleared_by_fairlead(now, out)
        self._block_count += len(item) - before
        return out

    def _enforce_limits(self, item: InstanceBlocks, now: float, out: list[Change]) -> None:
        while len(item) > self._limits.kv_blocks_per_instance:
            self._evict(item, now, out)
        while self._block_count > self._limits.kv_blocks:
            self._evict(max(self._instances.values(), key=len), now, out)

    def _evict(self, item: InstanceBlocks, now: float, out: list[Change]) -> None:
        before = len(item)
        item.evict(max(1, before // _EVICTED_FRACTION), now, out)
        self._block_count += len(item) - before

    def _depth(
        self, item: InstanceBlocks, hashes: Sequence[int], start: int, upto: StorageTier = StorageTier.GPU
    ) -> int:
        """From ``start``, how far the chain is held in tiers up to ``upto``."""
        mask = 0
        for tier in INSTANCE_TIERS[: upto + 1]:
            mask |= MAX_COPIES << TIER_SHIFT[tier]
        depth, copies = start, item.blocks.copies
        while depth < len(hashes) and copies(hashes[depth]) & mask:
            depth += 1
        return depth
