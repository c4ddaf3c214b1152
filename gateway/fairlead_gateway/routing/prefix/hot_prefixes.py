"""The length of routing keys: a key is longer where many prompts begin alike.

A short key sends half of the traffic to one pair of homes, since all requests may share a system
prompt. A long key hides that two prompts share anything. So the last requests form a window. A
prefix that more than 2/n of them share (n instances) is *hot*, and the key reaches one level
deeper. It cools when its share falls below 1/n.

Each router counts the prompts that it sends, and those that other workers and gateways report.

Invariant: the length of a key depends only on the prompts seen and n. It never depends on a clock
or on load.

Source: DualMap (arXiv 2602.06502). Changed: keys start at 4 KiB of text, two of the paper's
512-token blocks, since one block would be the same for a whole trace. Levels are byte positions
(256 B, 512 B, 1, 2, 4 KiB, then every 2 KiB, and from 64 KiB on every 4 KiB). The window counts
each request once.
"""

from collections.abc import Hashable
from typing import Final

from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain, block_ends

BASE_BYTES: Final = 4096
LEVEL_BYTES: Final = 2048
MAX_LEVELS: Final = 48
"""Up to 132 KiB, or 33,000 tokens.

Why: system prompt and tools of coding agents have up to 25,000. With keys that end inside of them,
all sessions of an agent share two homes.
"""
WINDOW: Final = 200
WINDOW_PER_INSTANCE: Final = 25
MIN_SAMPLES: Final = 20


_SINGLE_BLOCK: Final = (0,)


def level_blocks(ends: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the indexes of the blocks at which a key may end, in rising order.

    The first is the block at `BASE_BYTES`. A shorter prompt has a single one, which ends
    at a power of two.
    """
    if ends[-1] < BASE_BYTES:
        # A short prompt ends at a power of two, so that its next turn often keeps the key.
        return (max(index for index, end in enumerate(ends) if end & (end - 1) == 0),)
    blocks: list[int] = []
    next_end = BASE_BYTES
    for index, end in enumerate(ends):
        if end >= next_end:  # later, beyond 64 KiB: blocks are coarser than levels
            blocks.append(index)
            next_end = end + LEVEL_BYTES
            if len(blocks) == MAX_LEVELS:
                break
    return tuple(blocks)


class _LevelCuts:
    """The blocks of all chains of one length at which a key may end."""

    __slots__ = ("blocks", "ends")

    def __init__(self, ends: tuple[int, ...]) -> None:
        self.ends = ends
        self.blocks = level_blocks(ends)


class _PrefixLevel:
    """A prefix at which a key may end, with the number of prompts in the window that share it."""

    __slots__ = ("count", "digest", "hot", "parent")

    def __init__(self, digest: Hashable, parent: "_PrefixLevel | None") -> None:
        self.digest = digest
        self.parent = parent
        self.count = 0
        self.hot = False


class HotPrefixes:
    """The window of last requests of one model, and its hot prefixes.

    The hash of a level names everything before it, so the levels of all prompts form a tree. A
    prompt is counted from its deepest level up, without a lookup per level.
    """

    def __init__(self) -> None:
        self._window: list[_PrefixLevel] = []  # the deepest level of each prompt
        self._first_counted = 0  # older entries are no longer counted
        self._levels: dict[Hashable, _PrefixLevel] = {}
        self._cuts: dict[int, _LevelCuts] = {}  # by number of blocks

    def __len__(self) -> int:
        return sum([level.hot for level in self._levels.values()])

    def routing_key(self, chain: PrefixChain) -> Hashable:
        """Returns the hash of the prompt's first level that is not hot, else of the deepest."""
        hashes = self._hashes(chain)
        blocks = self._level_blocks(chain)
        for block in blocks:
            level = self._levels.get(hashes[block])
            if level is None or not level.hot:
                return hashes[block]
        return hashes[blocks[-1]]

    def observe(self, chain: PrefixChain, instances: int) -> Hashable:
        """Counts one request and returns its routing key."""
        window = self._window
        deepest = self._deepest_level(chain)
        window.append(deepest)
        level: _PrefixLevel | None = deepest
        while level is not None:
            level.count += 1
            level = level.parent
        max_prompts = max(WINDOW, WINDOW_PER_INSTANCE * instances)
        while len(window) - self._first_counted > max_prompts:
            self._uncount(window[self._first_counted], max_prompts, instances)
            self._first_counted += 1
        if self._first_counted > max_prompts:
            del window[: self._first_counted]
            self._first_counted = 0
        counted = len(window) - self._first_counted
        if counted >= MIN_SAMPLES:
            _update_hot_levels(deepest, counted, instances)
        key, level = deepest, deepest
        while level is not None:
            if not level.hot:
                key = level
            level = level.parent
        return key.digest

    def _uncount(self, deepest: _PrefixLevel, window: int, instances: int) -> None:
        level: _PrefixLevel | None = deepest
        while level is not None:
            level.count -= 1
            if level.count * instances < window:
                level.hot = False
            if not level.count and self._levels.get(level.digest) is level:  # forged blocks may have equal hashes
                del self._levels[level.digest]
            level = level.parent

    def _deepest_level(self, chain: PrefixChain) -> _PrefixLevel:
        """Returns the prompt's deepest level. Creates it and those above it if they are new."""
        levels, hashes, blocks = self._levels, self._hashes(chain), self._level_blocks(chain)
        deepest: _PrefixLevel | None = None
        low, high = 0, len(blocks)
        while low < high:  # all levels above a known one are known
            middle = (low + high) >> 1
            level = levels.get(hashes[blocks[middle]])
            if level is None:
                high = middle
            else:
                low, deepest = middle + 1, level
        while deepest is None or low < len(blocks):
            digest = hashes[blocks[low]]
            deepest = levels[digest] = _PrefixLevel(digest, deepest)
            low += 1
        return deepest

    def _hashes(self, chain: PrefixChain) -> tuple[Hashable, ...]:
        hashes: tuple[Hashable, ...] = chain.hashes
        return hashes or (chain.tail,)

    def _level_blocks(self, chain: PrefixChain) -> tuple[int, ...]:
        ends = chain.ends
        count = len(ends)
        if not count:
            return _SINGLE_BLOCK
        cuts = self._cuts.get(count)
        if cuts is None or cuts.ends is not ends:
            cuts = _LevelCuts(ends)
            if ends is block_ends(count):
                self._cuts[count] = cuts
        return cuts.blocks


def _update_hot_levels(deepest: _PrefixLevel, prompts: int, instances: int) -> None:
    """Marks the levels that more than 2/n of the prompts share as hot.

    The highest other level stops being hot if fewer than 1/n share it.
    """
    first_shared_by_fewer = deepest
    level: _PrefixLevel | None = deepest
    while level is not None:  # higher levels are shared by more prompts
        if level.count * instances <= 2 * prompts:
            first_shared_by_fewer = level
        else:
            level.hot = True
        level = level.parent
    if first_shared_by_fewer.count * instances < prompts:
        first_shared_by_fewer.hot = False
