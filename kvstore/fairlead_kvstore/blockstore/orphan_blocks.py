"""Blocks whose parent is unknown, kept until it is reported.

A reader that joins late, or loses a batch, receives blocks that follow one it has never seen. Their
content depends on all blocks before them, so they cannot be named yet. Other indexes drop them, and
every block that follows them stays invisible until the engine stores it again. Here they wait with
their tokens, by the handle of the parent. When a replay or a later request reports the parent, they
are linked, and then the blocks that wait for them. They are bounded: the oldest are dropped first
and counted.

A waiting block may be removed before its parent arrives. The removal is noted and applied when the
block is linked.
"""

from collections.abc import Iterator

from fairlead_kvstore.blockstore.storage_tiers import StorageTier


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


class PendingRun:
    """The blocks of one event, ``handles`` after ``parent`` (-1: a prompt's start)."""

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


class OrphanBlocks:
    """The orphans of one instance, bounded in blocks and in bytes of tokens and extra keys.

    noted: number of removals to apply when their blocks are linked.
    dropped: number of blocks evicted for lack of room.
    """

    __slots__ = ("_copies", "_most", "_most_bytes", "_order", "_waiting", "blocks", "bytes", "dropped", "noted")

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._waiting: dict[int, list[PendingRun]] = {}
        self._order: dict[int, PendingRun] = {}  # by id(), oldest first
        self._copies: dict[tuple[int, StorageTier], list[int]] = {}  # waiting, and removed while they waited
        self.blocks = 0
        self.bytes = 0
        self.dropped = 0
        self.noted = 0

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[PendingRun]:
        return iter(self._order.values())

    def add(self, item: PendingRun) -> None:
        """Adds the blocks of an event. Beyond the bounds, the oldest orphans are dropped."""
        self._waiting.setdefault(item.parent, []).append(item)
        self._order[id(item)] = item
        self.blocks += len(item.handles)
        self.bytes += item.content.size
        for handle in item.handles:
            self._copies.setdefault((handle, item.tier), [0, 0])[0] += 1
        while self._order and (self.blocks > self._most or self.bytes > self._most_bytes):
            oldest = next(iter(self._order.values()))
            self.dropped += len(oldest.handles)
            self._forget(oldest)

    def take_children(self, parent: int) -> list[PendingRun]:
        """Removes and returns the blocks that wait for this handle."""
        found = self._waiting.get(parent)
        if not found:
            return []
        found = list(found)
        for item in found:
            self._forget(item, linked=True)
        return found

    def note_removed(self, handle: int, tier: StorageTier) -> bool:
        """Notes that a copy of a waiting block was removed. Returns False when none waits."""
        known = self._copies.get((handle, tier))
        if known is None or known[1] >= known[0]:
            return False
        known[1] += 1
        self.noted += 1
        return True

    def take_removal(self, handle: int, tier: StorageTier) -> bool:
        """Takes back one noted removal of a block that was just linked. Returns whether there was
        one.
        """
        known = self._copies.get((handle, tier))
        if known is None or not known[1]:
            return False
        known[1] -= 1
        self.noted -= 1
        if known == [0, 0]:
            del self._copies[handle, tier]
        return True

    def _forget(self, item: PendingRun, *, linked: bool = False) -> None:
        del self._order[id(item)]
        others = self._waiting[item.parent]
        others.remove(item)
        if not others:
            del self._waiting[item.parent]
        self.blocks -= len(item.handles)
        self.bytes -= item.content.size
        for handle in item.handles:
            known = self._copies[handle, item.tier]
            known[0] -= 1
            if not linked and known[1] > known[0]:
                self.noted -= known[1] - known[0]
                known[1] = known[0]
            if not known[0] and not known[1]:
                del self._copies[handle, item.tier]
