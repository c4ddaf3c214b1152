"""Blocks of prompts that are on their way to one instance: sent, and not answered yet.

The engine has such a block by the time whoever is sent after it is admitted: it takes requests in their order, stores a prompt's
blocks as it begins with it, and evicts none of a request that runs. So they count as held, before any event tells of them (a real
vLLM, eight clients, a cache that is far too small: of 91 prompts of which copy-counting at the engine expected too little, the
blocks of 90 were on their way). A block is on its way as often as prompts that have it are. Blocks are 64-bit numbers, of bytes or
of tokens; it is all the same here.
"""

from collections.abc import Iterable


class InflightBlocks:
    """``block in flying`` says whether a block is on its way."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def __contains__(self, block: object) -> bool:
        return block in self._counts

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._counts)

    def add(self, blocks: Iterable[int]) -> None:
        """A prompt with these was sent."""
        for block in blocks:
            self._counts[block] = self._counts.get(block, 0) + 1

    def remove(self, blocks: Iterable[int]) -> None:
        """One that took off with these is over, or given up."""
        for block in blocks:
            left = self._counts.get(block, 0) - 1
            if left > 0:
                self._counts[block] = left
            else:
                self._counts.pop(block, None)
