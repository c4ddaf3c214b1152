"""The local mirror: which instance probably holds which prefix, looked up in microseconds.

A dict maps a chained block hash to a bit mask of instances (one bit each). Equal hashes mean equal prompts up to there, and the
tail of a prompt goes before its head, so an instance that holds a block holds all before it: how deep each one reaches is found
by bisection, not by a walk. Every instance also has a least-recently-used order of its blocks, bounded by the KV tokens that it
can hold: what the engine must have evicted by now is forgotten here too. That order is kept by *runs*, stretches of a chain that
were always used together, so a prompt of a hundred known blocks moves two or three things. Entries are hints from this gateway's
own decisions: a wrong one costs a recomputation, never a request.

Hashes are taken as ``Hashable`` and not as ``int``: compiled code then hands a 64-bit number on as it is.
"""

from collections.abc import Collection, Hashable, Sequence


class Matched:
    """How far into a prompt instances hold it: ``reached[i]`` bytes at those in ``masks[i]``, deeper the further back."""

    __slots__ = ("masks", "reached")

    def __init__(self) -> None:
        self.reached: list[int] = []
        self.masks: list[int] = []

    def size(self, bit: int) -> int:
        """Bytes from the prompt's start that the instance with this bit holds."""
        masks = self.masks
        index = len(masks)
        while index:
            index -= 1
            if masks[index] & bit:
                return self.reached[index]
        return 0


class _Run:
    """Blocks ``first`` to ``first + count`` of a chain, all last used at the same time; a run without blocks is something else that
    takes ``extra`` bytes of the cache. ``before`` is the block that it goes on from, ``ends`` is of the whole chain. ``branched``:
    prompts that go on differently part at its end."""

    __slots__ = ("before", "branched", "count", "ends", "extra", "first", "hashes", "newer", "older")

    def __init__(
        self, before: Hashable, hashes: tuple[Hashable, ...], ends: tuple[int, ...], first: int, extra: int = 0
    ) -> None:
        self.before = before
        self.hashes = hashes
        self.ends = ends
        self.first = first
        self.count = len(hashes)
        self.extra = extra
        self.branched = False
        self.newer: _Run | None = None  # both are None out of the order of use
        self.older: _Run | None = None

    def size(self, index: int) -> int:
        """Bytes of the chain's block ``index``."""
        return self.ends[index] - (self.ends[index - 1] if index else 0)

    def place(self, older: "_Run | None") -> None:
        """Leave the present place in the order of use for the one behind ``older``."""
        if older is self or older is None:
            return
        self.leave()
        newer = older.newer
        assert newer is not None
        self.older, self.newer = older, newer
        older.newer = newer.older = self

    def leave(self) -> None:
        """Go out of the order of use. Nothing then refers to itself, so what is dropped is gone at once."""
        newer, older = self.newer, self.older
        if newer is not None and older is not None:
            newer.older, older.newer = older, newer
            self.newer = self.older = None


class _Held:
    """What one instance holds: its runs by block, those that go on from a block (``after``), and all in their order of use as a ring
    from ``order.newer`` (the oldest)."""

    __slots__ = ("after", "bit", "blocks", "order", "runs", "size")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.runs: dict[Hashable, _Run] = {}
        self.after: dict[Hashable, list[_Run]] = {}
        self.order = order = _Run(None, (), (), 0)
        order.newer = order.older = order
        self.size = 0
        self.blocks = 0

    def depth(self, hashes: tuple[Hashable, ...]) -> int:
        """How many blocks of the chain are held."""
        runs = self.runs
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high) >> 1
            if hashes[middle] in runs:
                low = middle + 1
            else:
                high = middle
        return low

    def use(self, hashes: tuple[Hashable, ...], known: int) -> "_Run | None":
        """The first ``known`` blocks have just been used; the run in which the last of them lies, ending with it."""
        runs, order = self.runs, self.order
        deepest: _Run | None = None
        at = known
        while at:
            run = runs.get(hashes[at - 1])
            if run is None or run.first >= at:
                break  # two prompts with the same 64-bit hash
            if run.first + run.count > at:
                run = self._split(run, at - run.first)
            # Tail first, head last: the head ends up as the most recently used, as in an engine's own cache.
            run.place(order.older)
            if deepest is None:
                deepest = run
            at = run.first
        return deepest

    def extend(self, deepest: _Run | None, hashes: tuple[Hashable, ...], ends: tuple[int, ...], known: int) -> None:
        """The blocks from ``known`` on are held now too; ``deepest`` is what they go on from, which has just been used."""
        runs = self.runs
        if deepest is None or deepest.branched or deepest.first + deepest.count != known:
            run = _Run(hashes[known - 1] if known else None, hashes[known:] if known else hashes, ends, known)
            run.place(self.order.older if deepest is None else deepest.older)
            if known:
                self._goes_on(run)
        else:
            run = deepest
            run.hashes = run.hashes[: run.count] + hashes[known:]
            run.ends = ends
            run.count = len(run.hashes)
        index, count = known, len(hashes)
        while index < count:
            runs[hashes[index]] = run
            index += 1
        self.blocks += count - known
        self.size += ends[count - 1] - (ends[known - 1] if known else 0)

    def _goes_on(self, run: _Run) -> None:
        """The run begins behind ``run.before``."""
        known = self.after.get(run.before)
        if known is None:
            self.after[run.before] = [run]
        else:
            known.append(run)

    def goes_no_more(self, run: _Run) -> None:
        """It does not begin there any more."""
        known = self.after.get(run.before)
        if known is not None and run in known:
            known.remove(run)
            if not known:
                del self.after[run.before]

    def _split(self, run: _Run, kept: int) -> _Run:
        """Cut a run behind its first ``kept`` blocks and return these. The longer part stays as it is, as its blocks point to it."""
        runs, count = self.runs, run.count
        head, tail = run.hashes[:kept], run.hashes[kept:count]
        if kept * 2 <= count:
            other = _Run(run.before, head, run.ends, run.first)
            other.branched = True
            self.goes_no_more(run)
            if run.first:
                self._goes_on(other)
            run.before, run.hashes, run.count = head[kept - 1], tail, count - kept
            run.first += kept
            self._goes_on(run)
            for digest in head:
                runs[digest] = other
            return other
        other = _Run(head[kept - 1], tail, run.ends, run.first + kept)
        other.branched = run.branched
        other.place(run.older)
        self._goes_on(other)
        run.hashes, run.count, run.branched = head, kept, True
        for digest in tail:
            runs[digest] = other
        return run


class PrefixMirror:
    """Blocks by instance for one model. Sizes are bytes of prompt text, capacity likewise; chains are whole, from the start."""

    def __init__(self, blocks_most: int) -> None:
        self._blocks_most = blocks_most
        self._masks: dict[Hashable, int] = {}
        self._held: dict[str, _Held] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._masks)

    def hold(self, instance: str) -> int:
        """Make room for what an instance will hold; its bit in the masks of ``Matched``, until it is forgotten."""
        return self._holding(instance).bit

    def bit(self, instance: str) -> int:
        """The same, 0 when nothing is known of the instance."""
        held = self._held.get(instance)
        return 0 if held is None else held.bit

    def size(self, instance: str) -> int:
        """Bytes of all that an instance holds."""
        held = self._held.get(instance)
        return 0 if held is None else held.size

    def matched(self, hashes: tuple[Hashable, ...], ends: tuple[int, ...]) -> Matched:
        """How far from its start each instance holds the prompt."""
        found = Matched()
        masks, count = self._masks, len(hashes)
        alive = (masks.get(hashes[0]) or 0) if count else 0
        low = 0  # all of ``alive`` hold this block
        while alive:
            high, behind = count, 0  # not all of them hold that one, only those in ``behind``
            while high - low > 1:
                middle = (low + high) >> 1
                still = (masks.get(hashes[middle]) or 0) & alive
                if still == alive:
                    low = middle
                else:
                    high, behind = middle, still
            found.reached.append(ends[low])
            found.masks.append(alive ^ behind)
            alive, low = behind, high
        return found

    def add(self, instance: str, hashes: tuple[Hashable, ...], ends: tuple[int, ...], *, capacity: int) -> None:
        """``instance`` holds (or is about to hold) these blocks; the least recently used beyond ``capacity`` bytes are dropped."""
        held = self._holding(instance)
        count = len(hashes)
        if count:
            known = held.depth(hashes)
            deepest = held.use(hashes, known)
            if known < count:
                held.extend(deepest, hashes, ends, known)
                self._mark(hashes, known, held.bit)
        if held.size > capacity or held.blocks > self._blocks_most:
            self._trim(held, capacity)

    def occupy(self, instance: str, size: int, *, capacity: int) -> None:
        """Something that no prompt asks for takes ``size`` bytes there, and pushes out what is beyond ``capacity``."""
        held = self._holding(instance)
        _Run(None, (), (), 0, size).place(held.order.older)
        held.blocks += 1
        held.size += size
        if held.size > capacity or held.blocks > self._blocks_most:
            self._trim(held, capacity)

    def drop(self, instance: str, hashes: Sequence[Hashable]) -> None:
        """``instance`` turned out not to hold these blocks, hence none of those that go on from them."""
        held = self._held.get(instance)
        if held is None:
            return
        gone: list[Hashable] = list(hashes)
        while gone:
            digest = gone.pop()
            run = held.runs.get(digest)
            if run is not None:
                gone += self._cut(held, run, run.hashes.index(digest))
            for child in held.after.pop(digest, ()):
                gone += self._cut(held, child, 0)

    def keep_only(self, instances: Collection[str]) -> None:
        """Forget all others."""
        for gone in [name for name in self._held if name not in instances]:
            self.forget(gone)

    def forget(self, instance: str) -> None:
        """Everything of an instance that is gone or has started anew."""
        held = self._held.pop(instance, None)
        if held is None:
            return
        for digest in held.runs:
            self._clear(digest, held.bit)
        held.runs.clear()
        held.after.clear()
        while (run := held.order.newer) is not None:
            run.leave()  # the ring would keep them until the next search for garbage; it is itself the last to go
        self._free.append(held.bit)

    def _holding(self, instance: str) -> _Held:
        held = self._held.get(instance)
        if held is None:
            held = self._held[instance] = _Held(self._free.pop() if self._free else 1 << len(self._held))
        return held

    def _mark(self, hashes: tuple[Hashable, ...], known: int, bit: int) -> None:
        masks = self._masks
        index, count = known, len(hashes)
        while index < count:
            digest = hashes[index]
            masks[digest] = (masks.get(digest) or 0) | bit
            index += 1

    def _trim(self, held: _Held, capacity: int) -> None:
        most, order = self._blocks_most, held.order
        while held.size > capacity or held.blocks > most:
            run = order.newer
            if run is None or run is order:
                break
            if run.count:
                self._shorten(held, run)
            else:
                held.size -= run.extra
                held.blocks -= 1
                run.leave()

    def _shorten(self, held: _Held, run: _Run) -> None:
        """The run's last block goes, and the run with its last one."""
        runs = held.runs
        run.count -= 1
        digest = run.hashes[run.count]
        held.size -= run.size(run.first + run.count)
        held.blocks -= 1
        if digest in runs:
            del runs[digest]
        self._clear(digest, held.bit)
        if not run.count:
            run.leave()
            if run.first:
                held.goes_no_more(run)

    def _cut(self, held: _Held, run: _Run, kept: int) -> tuple[Hashable, ...]:
        """Shorten a run to so many blocks; those that went."""
        gone = run.hashes[kept : run.count]
        while run.count > kept:
            self._shorten(held, run)
        return gone

    def _clear(self, digest: Hashable, bit: int) -> None:
        mask = self._masks.get(digest) or 0
        left = mask & ~bit
        if left:
            self._masks[digest] = left
        elif mask:
            del self._masks[digest]
