"""The blocks of one instance that wait for their parent.

A reader that joins late, or loses a batch, receives blocks that follow one it has never seen. Their
content depends on all blocks before them, so they cannot be named yet. Other indexes drop them, and
every block that follows them stays invisible until the engine stores it again. Here they wait with
their tokens, by the handle of the parent. When a replay or a later request reports the parent, they
are linked, and then the blocks that wait for them. They are bounded: the oldest are dropped first
and counted.

A waiting block may be removed before its parent arrives. The removal is noted and applied when the
block is linked.
"""

from fairlead_kvstore.blockstore.event_runs.pending_run import PendingRun
from fairlead_kvstore.blockstore.storage_tiers import StorageTier


class OrphanBlocks:
    """The orphans of one instance, bounded in blocks and in bytes of tokens and extra keys.

    noted: number of removals to apply when their blocks are linked.
    """

    def __init__(self, max_blocks: int, max_bytes: int) -> None:
        self._max_blocks = max_blocks
        self._max_bytes = max_bytes
        self._waiting: dict[int, dict[int, PendingRun]] = {}  # by parent, then by id()
        self._order: dict[int, PendingRun] = {}  # by id(), oldest first
        self._copies: dict[tuple[int, StorageTier], list[int]] = {}  # waiting, and removed while they waited
        self.blocks = 0
        self.bytes = 0
        self.noted = 0

    def __len__(self) -> int:
        return len(self._order)

    def add(self, item: PendingRun) -> None:
        """Adds the blocks of an event. Beyond the bounds, the oldest orphans are dropped."""
        self._waiting.setdefault(item.parent, {})[id(item)] = item
        self._order[id(item)] = item
        self.blocks += len(item.handles)
        self.bytes += item.size
        for handle in item.handles:
            self._copies.setdefault((handle, item.tier), [0, 0])[0] += 1
        while self._order and (self.blocks > self._max_blocks or self.bytes > self._max_bytes):
            self._forget(next(iter(self._order.values())))

    def child_count(self, parent: int) -> int:
        """Returns the number of runs that wait for this handle."""
        return len(self._waiting.get(parent, ()))

    def take_children(self, parent: int, runs: int, max_blocks: int) -> list[PendingRun]:
        """Removes and returns up to ``runs`` runs that wait for this handle, oldest first.

        They have about ``max_blocks`` blocks; at least one is returned if any waits.
        """
        found, blocks = list[PendingRun](), 0
        for item in self._waiting.get(parent, {}).values():
            if blocks >= max_blocks or len(found) >= runs:
                break
            found.append(item)
            blocks += len(item.handles) + 1
        for item in found:
            self._forget(item, linked=True)
        return found

    def note_removed(self, handle: int, tier: StorageTier) -> None:
        """Notes that a copy of a waiting block was removed, if one waits."""
        known = self._copies.get((handle, tier))
        if known is not None and known[1] < known[0]:
            known[1] += 1
            self.noted += 1

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
        del others[id(item)]
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
