"""The blocks of a replica, each with its mask of instances and tiers.

Equal masks are shared (*interned*), since there are few distinct ones and many blocks. In a dict, a
block costs its entry and its key, some ninety bytes; with a mask of its own, up to 1.7 kB more.
Where it is compiled, ``mask_table.pyx`` is used instead: flat arrays, of some 24 bytes a block.
"""

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from fairlead_kvstore.native import NATIVE_MASK_TABLE

_MAX_INTERNED = 65_536


class DictMaskTable:
    """The masks by block hash, in Python. ``max_blocks`` is the number of blocks that it may have.
    ``NativeMaskTable`` has the same methods.
    """

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}
        self._interned: dict[int, int] = {}
        self._queue: list[int] = []

    def __len__(self) -> int:
        return len(self._masks)

    def __contains__(self, block_hash: int) -> bool:
        return block_hash in self._masks

    def __iter__(self) -> Iterator[int]:
        return iter(self._masks)

    def get(self, block_hash: int) -> int | None:
        """Returns the mask of a block; None if it has none."""
        return self._masks.get(block_hash)

    def masks_of(self, hashes: Iterable[int]) -> Iterable[int | None]:
        """Returns the masks of a chain of blocks, at least up to the first without one."""
        return map(self._masks.get, hashes)

    def add(self, hashes: Iterable[int], bit: int, max_blocks: int) -> int:
        """Adds a bit to blocks, and returns how many were left out for lack of room."""
        masks, get, interned = self._masks, self._masks.get, self._interned
        last, shared, left_out = -1, 0, 0
        room = max_blocks - len(masks)
        for block_hash in hashes:
            old = get(block_hash, 0)
            if not old:
                if room <= 0:
                    left_out += 1
                    continue
                room -= 1
            if old is not last:
                last = old
                new = old | bit
                shared = interned.setdefault(new, new)
            masks[block_hash] = shared
        self._limit_interned()
        return left_out

    def remove(self, hashes: Iterable[int], bit: int) -> None:
        """Removes a bit from blocks, and the blocks that have no other."""
        masks, get, interned = self._masks, self._masks.get, self._interned
        for block_hash in hashes:
            old = get(block_hash, 0)
            if old & bit:
                left = old ^ bit
                if left:
                    masks[block_hash] = interned.setdefault(left, left)
                else:
                    del masks[block_hash]
        self._limit_interned()

    def load(self, block_hashes: "array[int]", counts: "array[int]", bits: dict[int, int], max_blocks: int) -> int:
        """Adds rows of a snapshot, and returns how many were left out.

        bits: for each number in ``counts`` but 0, the bits to add.
        """
        masks, get, interned, left_out = self._masks, self._masks.get, self._interned, 0
        for block_hash, count in zip(block_hashes, counts, strict=True):
            if not count:
                continue
            old = get(block_hash, 0)
            if not old and len(masks) >= max_blocks:
                left_out += 1
                continue
            new = old | bits[count]
            if new != old:
                masks[block_hash] = interned.setdefault(new, new)
        self._limit_interned()
        return left_out

    def begin_sweep(self) -> None:
        """Begins to look at every block once."""
        self._queue = list(self._masks)

    def sweep(self, dead: int, max_blocks: int) -> bool:
        """Clears bits from up to ``max_blocks`` blocks. Returns whether that was the rest."""
        masks, queue, interned = self._masks, self._queue, self._interned
        stop = max(0, len(queue) - max_blocks)
        for block_hash in queue[stop:]:
            old = masks.get(block_hash, 0)
            if old & dead:
                left = old & ~dead
                if left:
                    masks[block_hash] = interned.setdefault(left, left)
                else:
                    del masks[block_hash]
        del queue[stop:]
        self._limit_interned()
        return not queue

    def _limit_interned(self) -> None:
        """Clears the table of shared masks when it has more than ``_MAX_INTERNED`` entries."""
        if len(self._interned) > _MAX_INTERNED:
            self._interned.clear()


def new_mask_table() -> Any:
    """Returns an empty ``DictMaskTable``, or a ``NativeMaskTable``."""
    return DictMaskTable() if NATIVE_MASK_TABLE is None else NATIVE_MASK_TABLE()
