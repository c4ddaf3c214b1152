"""How deep into a prompt its routing key reaches: deeper exactly where many prompts begin alike.

A key that is too short sends half the traffic to one pair of homes (every request may share a system prompt); one
that is too long forgets that two prompts share anything. DualMap's answer, kept here: look at the last requests; a
prefix that more than 2/n of them share (n instances: more than its pair can carry) is *hot* and the key reaches one
level deeper; a hot prefix cools when its share falls below 1/n. What we changed: the key starts at 4 KiB of text
(two of the paper's 512-token blocks; one block would be the same for a whole trace), levels are byte positions (256
B, 512 B, 1, 2, 4 KiB, then every 2 KiB), and the window is counted once per request.

Invariant: the depth of a key depends only on the prompts seen (in order) and n, never on a clock or on load.
"""

from collections.abc import Hashable
from typing import Final

from fairlead_gateway.routing.prefix import PrefixChain, block_ends

BASE_BYTES: Final = 4096
LEVEL_BYTES: Final = 2048
LEVELS_DEEPEST: Final = 16
WINDOW: Final = 200
WINDOW_PER_INSTANCE: Final = 25
SAMPLES_LEAST: Final = 20


def level_blocks(ends: tuple[int, ...]) -> tuple[int, ...]:
    """The blocks at whose ends a key may end, shallow to deep: the base first (or the deepest fit block of a shorter prompt)."""
    if ends[-1] < BASE_BYTES:
        # A short prompt: the deepest block that ends at a power of two, so that its next turn often keeps the key.
        return (max(index for index, end in enumerate(ends) if end & (end - 1) == 0),)
    found: list[int] = []
    wanted = BASE_BYTES
    for index, end in enumerate(ends):
        if end == wanted:
            found.append(index)
            wanted += LEVEL_BYTES
            if len(found) == LEVELS_DEEPEST:
                break
        elif end > wanted:  # behind 64 KiB blocks are coarser than levels
            wanted = end + LEVEL_BYTES - (end % LEVEL_BYTES)
    return tuple(found)


class _Cut:
    """Where the levels lie in all chains of one length."""

    __slots__ = ("blocks", "ends")

    def __init__(self, ends: tuple[int, ...]) -> None:
        self.ends = ends
        self.blocks = level_blocks(ends)


class HotPrefixes:
    """The sliding window and the set of hot prefixes of one model. Hashes are ``Hashable`` for the reason given in the mirror."""

    def __init__(self) -> None:
        self._window: list[tuple[Hashable, ...]] = []
        self._oldest = 0  # behind it the window has been forgotten
        self._counts: dict[Hashable, int] = {}
        self._hot: set[Hashable] = set()
        self._cuts: dict[int, _Cut] = {}  # by how many blocks there are, of chains that are cut the usual way

    def __len__(self) -> int:
        return len(self._hot)

    def levels(self, chain: PrefixChain) -> tuple[Hashable, ...]:
        """The hashes at which a key may end, shallow to deep."""
        ends: tuple[int, ...] = chain.ends
        hashes: tuple[Hashable, ...] = chain.hashes
        count = len(ends)
        if not count:
            return (chain.tail,)
        cut = self._cuts.get(count)
        if cut is None or cut.ends is not ends:
            cut = _Cut(ends)
            if ends is block_ends(count):
                self._cuts[count] = cut
        blocks = cut.blocks
        if len(blocks) == 1:
            return (hashes[blocks[0]],)
        return tuple([hashes[index] for index in blocks])

    def key(self, found: tuple[Hashable, ...]) -> Hashable:
        """The routing key of a prompt with these levels: the first level that is not hot, else the deepest."""
        hot = self._hot
        for digest in found:
            if digest not in hot:
                return digest
        return found[-1]

    def observe(self, found: tuple[Hashable, ...], instances: int) -> None:
        """Count one request and move its levels across the 2/n and 1/n thresholds."""
        window, counts, hot = self._window, self._counts, self._hot
        window.append(found)
        for digest in found:
            counts[digest] = (counts.get(digest) or 0) + 1
        wanted = max(WINDOW, WINDOW_PER_INSTANCE * instances)
        while len(window) - self._oldest > wanted:
            self._forget(window[self._oldest], wanted, instances)
            self._oldest += 1
        if self._oldest > wanted:
            del window[: self._oldest]
            self._oldest = 0
        seen = len(window) - self._oldest
        if seen < SAMPLES_LEAST:
            return
        for digest in found:
            share = counts[digest] * instances
            if share > 2 * seen:
                hot.add(digest)
            else:
                if share < seen and digest in hot:
                    hot.remove(digest)
                break

    def _forget(self, found: tuple[Hashable, ...], seen: int, instances: int) -> None:
        counts, hot = self._counts, self._hot
        for digest in found:
            left = counts[digest] - 1
            if left:
                counts[digest] = left
            else:
                del counts[digest]
            if left * instances < seen and digest in hot:
                hot.remove(digest)
