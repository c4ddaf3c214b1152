"""What one instance (engine × rank) holds, from its events in order.

The rules, each for something that a real engine does:

- *Stored* adds a copy of each block; a handle that is known keeps what it stands for, without hashing again. Blocks of the CPU
  and disk tiers are announced without extra keys: they are named by the handle that the GPU announced. If that is unknown, and
  the engine does name extra keys otherwise, nobody can tell a salted block from a plain one; it is counted (``unnamed``), not
  credited.
- *Removed* takes a copy away. One of a block that nobody knows is counted (``unknown``) and is no error: who joins late sees
  many.
- *AllBlocksCleared* names no tier even when it means only the GPU, so everything goes. What the other tiers still hold is not
  announced again: they are ``vague`` until something of them is seen. The GPU is then known to be empty: the slice is complete.
- *Fairlead's own resets* are announced by the engine only with its next step, perhaps hours later. ``cleared_by_us`` drops all at
  once; what arrives before the engine's own word is from before the reset and is left out.
- *Groups*: a hybrid model keeps one cache per kind of attention, and announces each. A prefix can only be hit where the
  full-attention group has it, so only the first group of such a kind counts, the others are counted as ``other_groups`` and left
  out. The other groups may have lost what a hit needs as well (a sliding window its last blocks, Mamba a state), so the slice of
  a hybrid model says ``hybrid``: its depths are upper bounds. A model without any full-attention group is never credited.

Ages are in ticks of sixteen seconds. A block's tick is when it was last stored or used, and a use counts for all blocks before it,
so nothing is older than what goes on from it: the order "oldest first, and of those the deepest" is the order in which engines
evict.
"""

from typing import Final

import xxhash

from fairlead.limits import Limits
from fairlead.names import NAME_BYTES
from fairlead_kvstore.events.wire import AllCleared, Batch, Hash, Removed, Stored
from fairlead_kvstore.truth import changes
from fairlead_kvstore.truth.adapters import Adapters
from fairlead_kvstore.truth.blocks import COPIES_MOST, SHIFT, TICK_SECONDS, Blocks, tick_of
from fairlead_kvstore.truth.changes import Change, Cleared
from fairlead_kvstore.truth.counts import Counts
from fairlead_kvstore.truth.identity import TOKEN_BYTES, Extras, extra_bytes, handle, root, token_bytes, with_extras
from fairlead_kvstore.truth.orphans import Orphans, Waiting
from fairlead_kvstore.truth.shared import Shared
from fairlead_kvstore.truth.standing import Standing
from fairlead_kvstore.truth.tiers import EXACT, Tier, tier_of

FULL_KINDS: Final = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
_NO_KIND: Final = frozenset({None, "unknown"})
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_EASE: Final = 0.05
_MEDIA_MOST: Final = 32
_HASH: Final = xxhash.xxh3_64_intdigest


class Slice:
    """One instance's blocks. Every method that changes something appends what changed to ``out``; ``now`` is monotonic seconds."""

    def __init__(
        self,
        instance: str,
        model_key: str,
        shared: Shared,
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
        self.standing = Standing(instance, now)
        self.counts = Counts()
        self.block_size: int | None = None
        self.hybrid = False
        self.vague: set[Tier] = set()
        self.evicted_age_seconds: float | None = None
        self._shared = shared
        self.limits = limits
        self._secret = secret
        self.group: int | None = None
        self.names_extras = False
        self.awaited_until: float | None = None
        self.last_clear: float | None = None
        self._roots: dict[str | None, int] = {}
        self._tiers: dict[str | None, Tier] = {}
        self.blocks = Blocks()
        self.adapters = Adapters(instance, self.blocks, limits.kv_adapter_versions)
        self._orphans = Orphans(limits.kv_orphans_per_instance, limits.kv_orphans_bytes)

    def __len__(self) -> int:
        """Rows, those of parked adapters too."""
        rows = len(self.blocks)
        return rows + sum(len(parked) for parked in self.adapters) if self.adapters.parked else rows

    @property
    def bytes(self) -> int:
        """Bytes of all tables."""
        return self.blocks.bytes + sum(parked.bytes for parked in self.adapters)

    @property
    def waiting(self) -> int:
        """Blocks whose parent is unknown."""
        return self._orphans.blocks

    # --- what the stream says -------------------------------------------------------------------------------------------

    def apply(self, batch: Batch, now: float, out: list[Change]) -> None:
        """One batch, in its order."""
        self.counts.unknown_events += batch.unknown
        self.counts.refused_events += batch.refused
        tick = tick_of(now)
        awaited = self.awaited_until
        awaiting = awaited is not None and any(isinstance(event, AllCleared) for event in batch.events)
        if awaited is not None and not awaiting:
            if now <= awaited:
                self.counts.before_clear += len(batch.events)
                return
            self.awaited_until = None
            self.standing.mark(False, "the engine said yes to a clear and never told of it", now, out)
        for event in batch.events:
            if awaiting and not isinstance(event, AllCleared):
                self.counts.before_clear += 1
            elif isinstance(event, Stored):
                self._stored(event, tick, now, out)
            elif isinstance(event, Removed):
                self._removed(event, tick, out)
            else:
                awaiting = False
                self._cleared(event, now, out)
        self._doubt(now, out)

    def whole(self, reason: str, now: float, out: list[Change]) -> None:
        """From here on nothing is missing, and nothing that comes was published before."""
        self.awaited_until = None
        self.standing.mark(True, reason, now, out)

    def lost(self, reason: str, now: float, out: list[Change]) -> None:
        """Something is missing: what is held may be gone, so it is dropped; what comes is learned, and marked incomplete."""
        self._drop(reason, out)
        self.standing.mark(False, reason, now, out)

    def restarted(self, reason: str, now: float, out: list[Change]) -> None:
        """Another process: a new epoch, in which no handle means what it meant."""
        self.epoch += 1
        self.group, self.awaited_until = None, None
        self.standing.restart()
        self.names_extras, self.hybrid, self.evicted_age_seconds = False, False, None
        self._drop(reason, out, always=True)
        self.adapters = Adapters(self.instance, self.blocks, self.limits.kv_adapter_versions)
        self.vague.clear()
        self.standing.mark(False, reason, now, out)

    def suspended(self, reason: str, now: float, out: list[Change]) -> None:
        """The stream broke off; until it is known what became of the engine, the slice is not to be trusted."""
        self.standing.suspend(reason, now, out)

    def resumed(self, out: list[Change]) -> None:
        """The same process goes on: the slice is what it was."""
        self.standing.resume(out)

    def cleared_by_us(self, now: float, out: list[Change]) -> None:
        """Fairlead had the engine clear its cache, and it said yes. Call it when the answer arrives."""
        echo = self.limits.kv_clear_echo_seconds
        if self.last_clear is None or now - self.last_clear > echo:
            self.awaited_until = now + echo
        self._drop("cleared by us", out)
        self.standing.mark(True, "cleared by us", now, out)

    def adapter(self, name: str, place: str, now: float, out: list[Change]) -> None:
        """What the engine serves under this name was loaded from ``place``."""
        self.adapters.served(name, place, out)
        self._doubt(now, out)

    def use(self, own: int, now: float) -> None:
        """A request was served from this block and those before it."""
        self.blocks.use(own, tick_of(now))

    def shed(self, count: int, now: float, out: list[Change]) -> None:
        """Memory is short: forget the blocks that were not used for longest, ends of chains first."""
        self.counts.dropped += min(count, len(self))
        while self.adapters.parked and count > 0:
            count -= len(self.adapters.parked.pop(next(iter(self.adapters.parked)))[1])
        blocks = self.blocks
        for row in blocks.oldest(max(0, count)):
            for tier in EXACT:
                if blocks.counts[row] >> SHIFT[tier] & COPIES_MOST:
                    self._gone(row, tier, out)
            blocks.release(row)
        self.standing.mark(False, "not enough memory for all blocks", now, out)

    # --- stored ---------------------------------------------------------------------------------------------------------

    def _stored(self, event: Stored, tick: int, now: float, out: list[Change]) -> None:
        tier = self._tier(event)
        if not self._counting(event.group_idx, event.kv_cache_spec_kind, learn=tier is Tier.GPU):
            self.counts.other_groups += 1
            return
        name = event.lora_name
        if name is None and event.lora_id is not None:
            name = f"#{event.lora_id}"  # an engine that only numbers its adapters; no request asks for this name
        if not event.block_hashes or (name is not None and not self._placed(name)):
            self.counts.unnamed += len(event.block_hashes)
            return
        if tier is Tier.GPU:
            self.block_size = event.block_size
            if event.extra_keys is not None:
                self.names_extras = True
        parent = _parent(event.parent_block_hash)
        item = Waiting(
            -1 if parent is None else parent,
            [value & _MASK if isinstance(value, int) else handle(value) for value in event.block_hashes],
            token_bytes(event.token_ids),
            event.block_size * TOKEN_BYTES,
            _plain(event.extra_keys, name),
            tier,
            name,
            event.lora_id,
            tick,
        )
        if tier is Tier.REMOTE:
            self._written(item, now, out)
            return
        self.vague.discard(tier)
        self.counts.stored += len(item.handles)
        if self._enter(item, out) and len(self._orphans):
            self._link(item, out)

    def _link(self, item: Waiting, out: list[Change]) -> None:
        """What waited for these blocks is known now, and what waited for that. Then copies that were removed meanwhile go."""
        linked = [item]
        for one in linked:
            for value in one.handles:
                for other in self._orphans.take(value):
                    self.counts.linked += len(other.handles)
                    if self._enter(other, out):
                        linked.append(other)
        if self._orphans.noted:
            for one in linked[1:]:
                for value in one.handles:
                    if self._orphans.owed(value, one.tier):
                        self._take(value, one.tier, one.tick, out)

    def _start(self, item: Waiting, table: Blocks) -> tuple[int, int] | None:
        """Own hash and depth of what the item goes on from; None when that is unknown."""
        if item.parent < 0:
            return self._root(item.adapter), -1
        row = table.by_handle.find(item.parent)
        if row:
            own = table.owns[row]
            if table.ticks[row] < item.tick:
                table.use(own, item.tick)
            return own, table.depths[row]
        row = table.by_handle.find(item.handles[0]) if item.handles else 0
        return (table.parents[row], table.depths[row] - 1) if row else None

    def _enter(self, item: Waiting, out: list[Change]) -> bool:
        """Add the item's blocks; False when it has to wait for its parent."""
        table, index = self.blocks, 0
        if item.adapter is not None:
            index = self.adapters.index(item.adapter)
            known = (item.parent, *item.handles[:1]) if item.parent >= 0 else tuple(item.handles[:1])
            table = self.adapters.table(item.adapter, item.adapter_id, known, out)
        start = self._start(item, table)
        if start is None:
            self.counts.orphans += len(item.handles)
            self._orphans.add(item)
            return False
        own, depth = start
        blind = item.extras is None and item.tier is not Tier.GPU and self.names_extras
        run = self._add(item, table, own, depth, index, blind)
        if table is self.blocks:
            out += run
        return True

    def _add(self, item: Waiting, table: Blocks, own: int, depth: int, index: int, blind: bool) -> list[Change]:
        """One copy of each block, after the block ``own`` of this depth. The hot loop: some two microseconds a block."""
        by_handle, owns, counts, ticks = table.by_handle, table.owns, table.counts, table.ticks
        data, width, extras, tier, tick = item.data, item.width, item.extras, item.tier, item.tick
        shift = SHIFT[tier]
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
                copies = counts[row] >> shift & COPIES_MOST
                if copies < COPIES_MOST:
                    counts[row] += unit
                else:
                    self.counts.saturated += 1
                if ticks[row] < tick:
                    ticks[row] = tick
                new = not copies and not (table.twins and table.elsewhere(row, shift))
            elif blind:
                self.counts.unnamed += len(item.handles) - number
                break
            else:
                own = _HASH(data[at : at + width], own)
                if extras is not None and (keys := extras[number]) is not None:
                    own = with_extras(own, keys)
                new = table.add_at(cell, value, own, parent, depth, index, unit, tick)
                if not new:
                    new = not table.elsewhere(by_handle.find(value), shift)
            at += width
            if new:
                if not run:
                    found.append(changes.Stored(self.instance, tier, parent, run))
                run.append(own)
            elif run:
                run = []
        return found

    def _written(self, item: Waiting, now: float, out: list[Change]) -> None:
        """Blocks in a shared store: hints for the model, see ``shared.py``."""
        start = self._start(item, self.blocks)
        own = start[0] if start else None
        blind = item.extras is None and self.names_extras
        for number, value in enumerate(item.handles):
            row = self.blocks.by_handle.find(value)
            if row:
                own = self.blocks.owns[row]
            elif own is None or blind:
                self.counts.unnamed += len(item.handles) - number
                return
            else:
                own = _HASH(item.data[number * item.width : (number + 1) * item.width], own)
                if item.extras is not None and (keys := item.extras[number]) is not None:
                    own = with_extras(own, keys)
            self._shared.written(own, now, out)

    # --- removed --------------------------------------------------------------------------------------------------------

    def _removed(self, event: Removed, tick: int, out: list[Change]) -> None:
        if not self._counting(event.group_idx, None, learn=False):
            self.counts.other_groups += 1
            return
        tier = self._tier(event)
        self.counts.removed += len(event.block_hashes)
        for value in event.block_hashes:
            key = value & _MASK if isinstance(value, int) else handle(value)
            if tier is Tier.REMOTE:
                if row := self.blocks.by_handle.find(key):
                    self._shared.gone(self.blocks.owns[row], out)
                else:
                    self.counts.unknown += 1
            elif not self._take(key, tier, tick, out) and not self._orphans.removed(key, tier):
                self.counts.unknown += 1

    def _take(self, key: int, tier: Tier, tick: int, out: list[Change]) -> bool:
        """One copy fewer; False when none is known."""
        table, shift = self.blocks, SHIFT[tier]
        row = table.by_handle.find(key)
        if not row and self.adapters.parked:
            table, row = self.adapters.find(key)
        copies = table.counts[row] >> shift & COPIES_MOST
        if not copies:
            return False
        if copies == 1 and tier is Tier.GPU:
            self._aged((tick - table.ticks[row]) * TICK_SECONDS)
        if (
            table is self.blocks and table.counts[row] == 1 << shift and not table.twins
        ):  # the usual case, and the hot one
            self._gone(row, tier, out)
            table.release(row)
        else:
            self._uncount(table, row, tier, 1, out)
        return True

    def _uncount(self, table: Blocks, row: int, tier: Tier, copies: int, out: list[Change]) -> None:
        """Take copies of a row away, and the row with its last one."""
        shift = SHIFT[tier]
        left = table.counts[row] - (copies << shift)
        if table is self.blocks and not left >> shift & COPIES_MOST:
            self._gone(row, tier, out)
        if left:
            table.counts[row] = left
        else:
            table.release(row)

    def _gone(self, row: int, tier: Tier, out: list[Change]) -> None:
        """The row's last copy in a tier goes; say so, unless a twin still has one."""
        table = self.blocks
        if table.twins and table.elsewhere(row, SHIFT[tier]):
            return
        last = out[-1] if out else None
        if isinstance(last, changes.Removed) and last.tier is tier and last.instance == self.instance:
            last.hashes.append(table.owns[row])
        else:
            out.append(changes.Removed(self.instance, tier, [table.owns[row]]))

    def _aged(self, seconds: float) -> None:
        """How long blocks lie unused before this engine evicts them, eased over some twenty evictions."""
        known = self.evicted_age_seconds
        self.evicted_age_seconds = seconds if known is None else known + (seconds - known) * _EASE

    # --- the rest -------------------------------------------------------------------------------------------------------

    def _doubt(self, now: float, out: list[Change]) -> None:
        if self.adapters.parked or self.standing.doubt:
            self.standing.doubted(self.adapters.doubt(), now, out)

    def _cleared(self, event: AllCleared, now: float, out: list[Change]) -> None:
        self.counts.clears += 1
        self.awaited_until, self.last_clear = None, now
        if event.medium is not None and (tier := tier_of(event.medium, exact=self._exact_media)) is not Tier.GPU:
            self._clear_tier(tier, out)
            return
        self._drop("the engine cleared its cache", out)
        self.standing.mark(True, "empty since the engine cleared its cache", now, out)

    def _drop(self, reason: str, out: list[Change], *, always: bool = False) -> None:
        """Forget every block of every tier."""
        held = 0
        for row in self.blocks.by_handle:
            held |= self.blocks.counts[row]
        self.vague.update(tier for tier in (Tier.CPU, Tier.DISK) if held >> SHIFT[tier] & COPIES_MOST)
        if len(self.blocks) or always:
            out.append(Cleared(self.instance, self.epoch, reason))
        self.blocks = Blocks()
        self.adapters.emptied(self.blocks)
        self.standing.doubt = ""  # nothing is parked any more; whoever drops marks
        self._orphans = Orphans(self.limits.kv_orphans_per_instance, self.limits.kv_orphans_bytes)

    def _clear_tier(self, tier: Tier, out: list[Change]) -> None:
        """An engine that names the tier which it cleared."""
        for table in (self.blocks, *self.adapters):
            for row in list(table.by_handle):
                if tier in EXACT and (copies := table.counts[row] >> SHIFT[tier] & COPIES_MOST):
                    self._uncount(table, row, tier, copies, out)

    def _tier(self, event: Stored | Removed) -> Tier:
        medium, locality = event.medium, event.locality
        known = self._tiers.get(medium) if locality is None else None
        if known is None:
            known = tier_of(medium, locality, shared=self._shared_media, exact=self._exact_media)
            if locality is None and len(self._tiers) < _MEDIA_MOST:
                self._tiers[medium] = known
        return known

    def _counting(self, group_idx: int | None, kind: str | None, *, learn: bool) -> bool:
        """Whether this is the group that decides on a hit."""
        group = group_idx or 0
        if self.group is None:
            if not learn:
                return True  # it speaks of blocks that nobody knows
            if kind in FULL_KINDS or (kind in _NO_KIND and not group):
                self.group = group
        if group != self.group:
            self.hybrid = True
            return False
        return True

    def _placed(self, name: str) -> bool:
        return len(name) <= NAME_BYTES and self.adapters.known(name, self.limits.kv_adapters)

    def _root(self, adapter: str | None) -> int:
        known = self._roots.get(adapter)
        if known is None:
            known = self._roots[adapter] = root(self.model_key, adapter, secret=self._secret)
        return known


def _parent(value: Hash | None) -> int | None:
    """The parent's handle; llm-d-inference-sim writes 0 for none."""
    return handle(value) if value else None


def _plain(extras: list[Extras | None] | None, adapter: str | None) -> list[bytes | None] | None:
    """Extra keys as bytes, without the adapter's name, which leads them; None where none are left."""
    if extras is None:
        return None
    found: list[bytes | None] = []
    for keys in extras:
        rest = keys[1:] if keys and adapter is not None and keys[0] == adapter else keys
        found.append(extra_bytes(rest) if rest else None)
    return found
