"""Blocks whose parent is unknown, kept until it is known.

Who joins late, or loses a batch, gets blocks that go on from one that was never announced to it. What they hold depends on all
before them, so they cannot be named yet. Other indexes drop them, and all that goes on from them stays invisible until the engine
stores it again. Here they wait, with their tokens, under the parent's handle: when a replay or a later request tells the parent,
they are linked, and what waits for them in turn. They are bounded: the oldest go first, and are counted.

A waiting block may be removed before its parent comes. Then it is noted, and taken back when the link is made.
"""

from collections.abc import Iterator

from fairlead_kvstore.blockstore.storage_tiers import StorageTier


class PendingRun:
    """One event's blocks, ``handles`` after ``parent`` (-1: a prompt's start). ``data`` are their token ids, ``width`` bytes for
    each; ``extras`` their extra keys as bytes, where there are any."""

    def __init__(
        self,
        parent: int,
        handles: list[int],
        data: bytes,
        width: int,
        extras: list[bytes | None] | None,
        tier: StorageTier,
        adapter: str | None,
        adapter_id: int | str | None,
        tick: int,
    ) -> None:
        self.parent = parent
        self.handles = handles
        self.data = data
        self.width = width
        self.extras = extras
        self.tier = tier
        self.adapter = adapter
        self.adapter_id = adapter_id
        self.tick = tick

    @property
    def size(self) -> int:
        """Bytes of tokens and extra keys."""
        return len(self.data) + (sum(len(keys) for keys in self.extras if keys) if self.extras else 0)


class OrphanBlocks:
    """The waiting ones of one slice, at most ``most`` blocks and ``most_bytes`` of tokens and extra keys.

    ``noted`` removals are to be taken back when their blocks are linked; ``dropped`` blocks had to make room.
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
        """Let it wait; the oldest make room."""
        self._waiting.setdefault(item.parent, []).append(item)
        self._order[id(item)] = item
        self.blocks += len(item.handles)
        self.bytes += item.size
        for handle in item.handles:
            self._copies.setdefault((handle, item.tier), [0, 0])[0] += 1
        while self._order and (self.blocks > self._most or self.bytes > self._most_bytes):
            oldest = next(iter(self._order.values()))
            self.dropped += len(oldest.handles)
            self._forget(oldest)

    def take_children(self, parent: int) -> list[PendingRun]:
        """Those that wait for this handle; they wait no longer."""
        found = self._waiting.get(parent)
        if not found:
            return []
        found = list(found)
        for item in found:
            self._forget(item, linked=True)
        return found

    def note_removed(self, handle: int, tier: StorageTier) -> bool:
        """A copy of a waiting block has gone. False when none waits."""
        known = self._copies.get((handle, tier))
        if known is None or known[1] >= known[0]:
            return False
        known[1] += 1
        self.noted += 1
        return True

    def take_removal(self, handle: int, tier: StorageTier) -> bool:
        """Whether a copy that has just been linked was removed while it waited; asking takes the note back."""
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
        self.bytes -= item.size
        for handle in item.handles:
            known = self._copies[handle, item.tier]
            known[0] -= 1
            if not linked and known[1] > known[0]:
                self.noted -= known[1] - known[0]
                known[1] = known[0]
            if not known[0] and not known[1]:
                del self._copies[handle, item.tier]
