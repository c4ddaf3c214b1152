"""The index of one model, to be asked: which instances hold this chain of blocks, how far, and in which tier.

A dict leads from a block's own hash to a number with three bits for each instance (GPU, CPU, disk). There are few different sets
of holders and many blocks, so equal numbers are kept once and shared (*interned*): a block then costs its entry and its key, some
ninety bytes, and a walk along a chain mostly meets the very number that it met a block before, which needs no arithmetic at all.

**The walk is exact.** The mirror of a gateway's own decisions may bisect, since it only ever forgets ends. This one holds what
engines told, and they may lose a block in the middle (it went to another tier, or its neighbour was pushed out), so every block is
looked at until nobody is left. Which is also cheap: a lookup in C for each block.

**The same chains are asked for again and again**, by every turn of a conversation and every user of a long system prompt, and an
answer follows from the numbers of its blocks alone. Where instances reach differently far, or hold blocks in slower tiers, an answer
costs some hundred steps; it is kept under these very numbers, up to the first block that nobody holds. So it is found again as long
as nobody stores or loses a block of it, with nothing to be invalidated, and prompts that go on differently behind it share it.

**A slower tier goes on where the faster one ends**, as in ``Truth.held``: depths are cumulative, and what a tier adds is the
difference. Hints of stores that all instances share come last, and only behind what somebody holds or from the start.

**Forgetting an instance** takes no time: its bits are *retired*, masked out of every answer, and swept from the numbers little
by little, with every batch that comes and whenever somebody calls ``sweep``. Then the bits are given to the next instance.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from fairlead.limits import Limits
from fairlead_kvstore.index.held import Held, Known
from fairlead_kvstore.truth.blocks import COPIES_MOST, SHIFT
from fairlead_kvstore.truth.changes import Change, Cleared, Expired, Gone, Hinted, Marked, Removed, Stored
from fairlead_kvstore.truth.tiers import EXACT, Tier

_LIMITS: Final = Limits()
_TIERS: Final = len(EXACT)
_INTERNED_MOST: Final = 65_536
_ANSWERS_MOST: Final = 4_096
_CHAINS_MOST: Final = 256
_CHAIN_BLOCKS: Final = 4_096
_CHAIN_BITS: Final = 1_024
"""Larger numbers, of some three hundred instances, cost more to be looked up than what is kept under them saves."""
_CHAIN_STEPS: Final = 3
"""An answer of so few depths is cheaper to make than to find."""
_SWEEP_LEAST: Final = 2_048
_SWEEP_PER_BLOCK: Final = 4
_RETIRED_MOST: Final = 64
"""More than so many retired instances are swept at once: they flap, and bits must not grow without end."""


class IndexMirror:
    """One model's blocks. Pure: no clock, no I/O; whoever feeds it calls ``expire`` and, when idle, ``sweep``."""

    def __init__(self, *, limits: Limits = _LIMITS) -> None:
        self._most = limits.index_mirror_blocks
        self._hints_most = limits.kv_shared_blocks
        self._hint_seconds = limits.kv_shared_seconds
        self._masks: dict[int, int] = {}
        self._interned: dict[int, int] = {}
        self._places: dict[str, int] = {}
        self._names: list[str] = []
        self._by_bit: dict[int, str] = {}
        self._answers: dict[tuple[int, int], tuple[Held, ...]] = {}
        self._chains: dict[tuple[int | None, ...], tuple[Held, ...]] = {}
        self._free: list[int] = []
        self._retired: list[int] = []
        self._sweeping: list[int] = []
        self._queue: list[int] = []
        self._dead = 0
        self._gpu = 0  # the GPU bit of every place there is
        self._slow = False  # whether any block was ever in a slower tier
        self._known: dict[str, Known] = {}
        self._hints: dict[int, float] = {}
        self.dropped = 0

    def __len__(self) -> int:
        """Blocks that somebody holds; of instances that are gone, until they are swept."""
        return len(self._masks)

    @property
    def hints(self) -> int:
        """Blocks that are probably in a shared store."""
        return len(self._hints)

    # --- questions ------------------------------------------------------------------------------------------------------

    def match(self, hashes: Sequence[int]) -> tuple[Held, ...]:
        """Who holds the chain's first block, and how far on; those who hold it farthest in the GPU come first."""
        if not hashes:
            return ()
        if self._hints:
            return self._tiered(hashes, self._walk(hashes))
        if hashes[0] not in self._masks:
            return ()
        if self._slow:
            return self._again(hashes)
        gpu = self._walk(hashes, most=_CHAIN_STEPS)
        return self._again(hashes) if len(gpu) > _CHAIN_STEPS else self._gathered(gpu)

    def holders(self, own: int) -> dict[str, tuple[Tier, ...]]:
        """Who holds one block, and where."""
        return self._who(self._masks.get(own, 0) & ~self._dead)

    def sets(self) -> Iterator[tuple[Mapping[str, tuple[Tier, ...]], int]]:
        """Every different set of holders, with how many blocks are held by just these; takes a look at every block."""
        for mask, blocks in Counter(self._masks.values()).items():
            if alive := mask & ~self._dead:
                yield self._who(alive), blocks

    def alone(self, hashes: Iterable[int]) -> dict[str, int]:
        """Of these blocks, how many are held by just one instance, by that instance; those without any are left out."""
        found: dict[str, int] = {}
        for mask, blocks in Counter(map(self._masks.get, hashes)).items():
            holders = self._who(mask & ~self._dead) if mask is not None else {}
            if len(holders) == 1:
                (only,) = holders
                found[only] = found.get(only, 0) + blocks
        return found

    def content(self, instance: str) -> Iterator[tuple[int, Tier]]:
        """Every block of an instance with each tier it is in; takes a look at every block. Nothing may be applied meanwhile."""
        place = self._places.get(instance)
        if place is None:
            return
        for own, mask in self._masks.items():
            bits = mask >> place * _TIERS
            for tier in EXACT:
                if bits >> tier & 1:
                    yield own, tier

    def hint_age_seconds(self, own: int, now: float) -> float | None:
        """How long ago a block was last said to be written to a store that all instances share, to half of the time for which that
        counts; None where nobody said so. The store tells nobody what it throws out, so the older, the less likely it is there."""
        until = self._hints.get(own)
        return None if until is None else max(0.0, self._hint_seconds - (until - now))

    def standing(self, instance: str) -> Known | None:
        """How sure it is what this instance holds; None when nothing was told."""
        return self._known.get(instance)

    def instances(self) -> tuple[str, ...]:
        """All that something was told of."""
        return tuple(self._known | self._places)

    # --- what is told ---------------------------------------------------------------------------------------------------

    def apply(self, changes: Iterable[Change]) -> None:
        """Changes in their order; again does no harm."""
        work = 0
        for change in changes:
            if isinstance(change, Stored):
                work += len(change.hashes)
                self._stored(change.hashes, self._bit(change.instance, change.tier))
            elif isinstance(change, Removed):
                work += len(change.hashes)
                if change.instance in self._places:
                    self._removed(change.hashes, self._bit(change.instance, change.tier))
            elif isinstance(change, Hinted):
                self._hinted(change.hashes, change.until)
            elif isinstance(change, Expired):
                for own in change.hashes:
                    self._hints.pop(own, None)
            elif isinstance(change, Marked):
                self._known[change.instance] = Known(change.complete, change.reason, change.since)
            elif isinstance(change, Cleared):
                self._retire(change.instance)
            elif isinstance(change, Gone):
                self._retire(change.instance)
                self._known.pop(change.instance, None)
        if self._dead:
            self.sweep(_SWEEP_LEAST + work * _SWEEP_PER_BLOCK)

    def load(self, instance: str, owns: Sequence[int], counts: Sequence[int]) -> None:
        """Rows as a slice keeps them: own hashes, and copies by tier (``truth.blocks.SHIFT``); rows of 0 copies are empty."""
        place = self._place(instance)
        bits: dict[int, int] = {}
        masks, get, interned = self._masks, self._masks.get, self._interned
        for own, count in zip(owns, counts, strict=True):
            if not count:
                continue
            bit = bits.get(count)
            if bit is None:
                bit = bits[count] = _tier_bits(count) << place * _TIERS
                self._slow |= _tier_bits(count) > 1
            old = get(own, 0)
            if not old and len(masks) >= self._most:
                self.dropped += 1
                continue
            new = old | bit
            if new != old:
                masks[own] = interned.setdefault(new, new)
        self._bound()

    def expire(self, now: float) -> list[int]:
        """Let go of hints that have run out at ``now`` (monotonic seconds); their own hashes."""
        over = []
        for own, until in self._hints.items():
            if until > now:
                break
            over.append(own)
        for own in over:
            del self._hints[own]
        return over

    def sweep(self, most: int) -> bool:
        """Look at up to ``most`` blocks for instances that are gone; whether there is more to do."""
        if not self._dead:
            return False
        if not self._queue:
            self._sweeping, self._retired = self._retired, []
            self._queue = list(self._masks)
        masks, queue, interned, dead = self._masks, self._queue, self._interned, self._dead
        stop = max(0, len(queue) - most)
        for own in queue[stop:]:
            old = masks.get(own, 0)
            if old & dead:
                left = old & ~dead
                if left:
                    masks[own] = interned.setdefault(left, left)
                else:
                    del masks[own]
        del queue[stop:]
        self._bound()
        if not queue:
            self._swept()
        return bool(self._dead)

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _who(self, mask: int) -> dict[str, tuple[Tier, ...]]:
        found: dict[str, tuple[Tier, ...]] = {}
        while mask:
            place = (mask.bit_length() - 1) // _TIERS
            bits = mask >> place * _TIERS
            found[self._names[place]] = tuple(tier for tier in EXACT if bits >> tier & 1)
            mask ^= bits << place * _TIERS
        return found

    def _gathered(self, gpu: list[tuple[int, int]]) -> tuple[Held, ...]:
        """The answer where there is nothing but the GPU."""
        answers = self._answers
        if len(gpu) == 1:
            return answers.get(gpu[0]) or self._answer(gpu[0])
        found: list[Held] = []
        for reach in reversed(gpu):
            found += answers.get(reach) or self._answer(reach)
        return tuple(found)

    def _again(self, hashes: Sequence[int]) -> tuple[Held, ...]:
        """The answer that the same numbers had before, or a new one. Not with hints, which are not in the numbers."""
        masks: list[int | None] = list(map(self._masks.get, hashes))
        if masks[-1] is None:
            del masks[masks.index(None) :]
        if self._gpu.bit_length() > _CHAIN_BITS or len(masks) > _CHAIN_BLOCKS:
            return self._made(hashes)
        key = tuple(masks)
        found = self._chains.get(key)
        if found is None:
            if len(self._chains) >= _CHAINS_MOST:
                self._chains.clear()
            found = self._chains[key] = self._made(hashes)
        return found

    def _made(self, hashes: Sequence[int]) -> tuple[Held, ...]:
        gpu = self._walk(hashes)
        return self._tiered(hashes, gpu) if self._slow else self._gathered(gpu)

    def _walk(self, hashes: Sequence[int], fold: int = 0, most: int = sys.maxsize) -> list[tuple[int, int]]:
        """(depth, GPU bits of those that reach just that depth), shallowest first; with ``fold`` slower tiers count as well.

        Ends early, with what it has, when these are more than ``most``.
        """
        found: list[tuple[int, int]] = []
        alive = self._gpu & ~self._dead
        if not alive:
            return found
        last: int | None = -1
        depth = -1
        for mask in map(self._masks.get, hashes):
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
                if not still or len(found) > most:
                    return found
                alive = still
        found.append((len(hashes), alive))
        return found

    def _answer(self, reach: tuple[int, int]) -> tuple[Held, ...]:
        """Those that hold so many blocks in the GPU and nothing elsewhere. The same ones are asked for again and again."""
        depth, mask = reach
        blocks = (depth, depth, depth, depth)
        if len(self._answers) >= _ANSWERS_MOST:
            self._answers.clear()
        found = self._answers[reach] = tuple(Held(name, blocks) for name in self._named(mask))
        return found

    def _named(self, mask: int) -> list[str]:
        """The instances of GPU bits."""
        names, found = self._by_bit, []
        while mask:
            low = mask & -mask
            found.append(names[low])
            mask ^= low
        return found

    def _tiered(self, hashes: Sequence[int], gpu: list[tuple[int, int]]) -> tuple[Held, ...]:
        """The answer where there is more than the GPU."""
        levels = [gpu, self._walk(hashes, 1), self._walk(hashes, 2)] if self._slow else [gpu, gpu, gpu]
        depths: list[dict[str, int]] = []
        for level, found in enumerate(levels):
            if level and found == levels[level - 1]:
                depths.append(depths[-1])
            else:
                depths.append({name: depth for depth, mask in found for name in self._named(mask)})
        fast, middle, slow = depths
        last = self._through_hints(hashes, slow) if self._hints else slow
        held = [
            Held(name, (fast.get(name, 0), middle.get(name, 0), slow.get(name, 0), depth))
            for name, depth in last.items()
        ]
        held.sort(key=_order, reverse=True)
        return tuple(held)

    def _through_hints(self, hashes: Sequence[int], reached: dict[str, int]) -> dict[str, int]:
        """A shared store goes on where an instance's own tiers end, for every member alike."""
        hints, masks = self._hints, self._masks
        names = self.instances() if hashes[0] in hints else tuple(reached)
        found = {}
        for name in names:
            place = self._places.get(name)
            mine = 0 if place is None else (1 << _TIERS) - 1 << place * _TIERS
            depth = reached.get(name, 0)
            while depth < len(hashes) and (hashes[depth] in hints or masks.get(hashes[depth], 0) & mine):
                depth += 1
            found[name] = depth
        return found

    def _stored(self, hashes: list[int], bit: int) -> None:
        masks, get, interned = self._masks, self._masks.get, self._interned
        last = -1
        shared = 0
        room = self._most - len(masks)
        for own in hashes:
            old = get(own, 0)
            if not old:
                if room <= 0:
                    self.dropped += 1
                    continue
                room -= 1
            if old is not last:
                last = old
                new = old | bit
                shared = interned.setdefault(new, new)
            masks[own] = shared
        self._bound()

    def _removed(self, hashes: list[int], bit: int) -> None:
        masks, get, interned = self._masks, self._masks.get, self._interned
        for own in hashes:
            old = get(own, 0)
            if old & bit:
                left = old ^ bit
                if left:
                    masks[own] = interned.setdefault(left, left)
                else:
                    del masks[own]
        self._bound()

    def _hinted(self, hashes: list[int], until: float) -> None:
        hints = self._hints
        for own in hashes:
            hints.pop(own, None)  # the order is by age
            hints[own] = until
        while len(hints) > self._hints_most:
            del hints[next(iter(hints))]

    def _bit(self, instance: str, tier: Tier) -> int:
        if tier is not Tier.GPU:
            self._slow = True
        return 1 << self._place(instance) * _TIERS + tier

    def _place(self, instance: str) -> int:
        place = self._places.get(instance)
        if place is None:
            if self._free:
                place = self._free.pop()
                self._names[place] = instance
                self._answers.clear()
                self._chains.clear()
            else:
                place = len(self._names)
                self._names.append(instance)
                self._gpu |= 1 << place * _TIERS
            self._places[instance] = place
            self._by_bit[1 << place * _TIERS] = instance
        return place

    def _retire(self, instance: str) -> None:
        place = self._places.pop(instance, None)
        if place is None:
            return
        self._retired.append(place)
        self._chains.clear()  # what is retired is in the numbers still
        self._dead |= (1 << _TIERS) - 1 << place * _TIERS
        while len(self._retired) + len(self._sweeping) > _RETIRED_MOST and self.sweep(len(self._masks)):
            pass

    def _swept(self) -> None:
        """No block has the bits of those that were retired when the round began."""
        for place in self._sweeping:
            self._dead &= ~((1 << _TIERS) - 1 << place * _TIERS)
        self._free += self._sweeping
        self._sweeping = []

    def _bound(self) -> None:
        """Beyond so many different sets of holders sharing them is given up for those known so far."""
        if len(self._interned) > _INTERNED_MOST:
            self._interned.clear()


def _order(held: Held) -> tuple[int, int, int, int]:
    return held.blocks


def _tier_bits(count: int) -> int:
    return sum(1 << tier for tier in EXACT if count >> SHIFT[tier] & COPIES_MOST)
