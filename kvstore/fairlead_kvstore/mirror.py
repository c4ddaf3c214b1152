"""The local mirror: which instance probably holds which prefix, looked up in microseconds.

A dict maps a chained block hash to a bit mask of instances (one bit each), so the longest prefix per instance is one
walk down the prompt's chain, clearing bits as instances drop out. Every instance also has a least-recently-used
order of its blocks, bounded by the KV tokens that it can hold: what the engine must have evicted by now is forgotten
here too. As in the engine the tail of a prompt goes before its head. Entries are hints from this gateway's own
decisions: a wrong one costs a recomputation, never a request.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence


class PrefixMirror:
    """Blocks by instance for one model. Sizes are bytes of prompt text; capacity likewise."""

    def __init__(self, blocks_most: int) -> None:
        self._blocks_most = blocks_most
        self._masks: dict[int, int] = {}
        self._bits: dict[str, int] = {}
        self._free: list[int] = []
        self._held: dict[str, OrderedDict[int, int]] = {}
        self._bytes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._masks)

    def matched(self, hashes: Sequence[int], ends: Sequence[int]) -> Mapping[str, int]:
        """Bytes of the prompt that each instance holds from its start; instances with nothing are left out."""
        masks = self._masks
        alive = masks.get(hashes[0], 0) if hashes else 0
        if not alive:
            return {}
        found: dict[int, int] = {}
        reached = 0
        for digest, end in zip(hashes, ends, strict=True):
            still = masks.get(digest, 0) & alive
            lost = alive ^ still
            while lost:
                bit = lost & -lost
                found[bit] = reached
                lost ^= bit
            alive = still
            if not alive:
                break
            reached = end
        while alive:
            bit = alive & -alive
            found[bit] = reached
            alive ^= bit
        return {instance: found[bit] for instance, bit in self._bits.items() if found.get(bit)}

    def add(self, instance: str, hashes: Sequence[int], ends: Sequence[int], *, capacity: int) -> None:
        """``instance`` holds (or is about to hold) these blocks; the least recently used beyond ``capacity`` bytes
        are dropped."""
        bit = self._bit(instance)
        held = self._held[instance]
        masks = self._masks
        size = self._bytes[instance]
        known, touch = masks.get, held.move_to_end
        # Tail first, head last: the head ends up as the most recently used, as in an engine's own cache.
        index = len(hashes)
        while index:
            index -= 1
            digest = hashes[index]
            mask = known(digest, 0)
            if mask & bit:
                touch(digest)
            else:
                block = ends[index] - (ends[index - 1] if index else 0)
                held[digest] = block
                size += block
                masks[digest] = mask | bit
        most = self._blocks_most
        if size > capacity or len(held) > most:
            oldest = held.popitem
            while held and (size > capacity or len(held) > most):
                digest, block = oldest(False)
                size -= block
                left = masks[digest] & ~bit
                if left:
                    masks[digest] = left
                else:
                    del masks[digest]
        self._bytes[instance] = size

    def drop(self, instance: str, hashes: Sequence[int]) -> None:
        """``instance`` turned out not to hold these blocks."""
        held = self._held.get(instance)
        if held is None:
            return
        bit = self._bits[instance]
        for digest in hashes:
            block = held.pop(digest, None)
            if block is not None:
                self._bytes[instance] -= block
                self._clear(digest, bit)

    def forget(self, instance: str) -> None:
        """Everything of an instance that is gone or has started anew."""
        held = self._held.pop(instance, None)
        if held is None:
            return
        bit = self._bits.pop(instance)
        del self._bytes[instance]
        for digest in held:
            self._clear(digest, bit)
        self._free.append(bit)

    def _bit(self, instance: str) -> int:
        bit = self._bits.get(instance)
        if bit is None:
            bit = self._free.pop() if self._free else 1 << len(self._bits)
            self._bits[instance] = bit
            self._held[instance] = OrderedDict()
            self._bytes[instance] = 0
        return bit

    def _clear(self, digest: int, bit: int) -> None:
        left = self._masks.get(digest, 0) & ~bit
        if left:
            self._masks[digest] = left
        else:
            self._masks.pop(digest, None)
