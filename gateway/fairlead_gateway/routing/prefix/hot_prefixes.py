"""How deep into a prompt its routing key reaches: deeper exactly where many prompts begin alike.

A key that is too short sends half the traffic to one pair of homes (every request may share a system prompt); one
that is too long forgets that two prompts share anything. DualMap's answer, kept here: look at the last requests; a
prefix that more than 2/n of them share (n instances: more than its pair can carry) is *hot* and the key reaches one
level deeper; a hot prefix cools when its share falls below 1/n. What we changed: the key starts at 4 KiB of text
(two of the paper's 512-token blocks; one block would be the same for a whole trace), levels are byte positions (256
B, 512 B, 1, 2, 4 KiB, then every 2 KiB), and the window is counted once per request.

Where several gateways share a Redis, one of them counts for all
(``fairlead_gateway.supervisor.peers.hot_prefix_lease``): its table, whole and with
its epoch, then takes the place of the own count, and equal epochs give equal keys. When there is no table any more, the last one is
gone by until the own window is full again, so that keys do not all change at that moment.

Invariant: the depth of a key depends only on the prompts seen (in order) and n, or on the table, never on a clock or on load.
"""

from collections.abc import Hashable
from typing import Final

from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain, block_ends

BASE_BYTES: Final = 4096
LEVEL_BYTES: Final = 2048
MAX_LEVELS: Final = 16
WINDOW: Final = 200
WINDOW_PER_INSTANCE: Final = 25
MIN_SAMPLES: Final = 20


_SINGLE_BLOCK: Final = (0,)


def level_blocks(ends: tuple[int, ...]) -> tuple[int, ...]:
    """The blocks at whose ends a key may end, shallow to deep: the base first (or the deepest fit block of a shorter prompt)."""
    if ends[-1] < BASE_BYTES:
        # A short prompt: the deepest block that ends at a power of two, so that its next turn often keeps the key.
        return (max(index for index, end in enumerate(ends) if end & (end - 1) == 0),)
    blocks: list[int] = []
    next_end = BASE_BYTES
    for index, end in enumerate(ends):
        if end == next_end:
            blocks.append(index)
            next_end += LEVEL_BYTES
            if len(blocks) == MAX_LEVELS:
                break
        elif end > next_end:  # behind 64 KiB blocks are coarser than levels
            next_end = end + LEVEL_BYTES - (end % LEVEL_BYTES)
    return tuple(blocks)


class _LevelCuts:
    """Where the levels lie in all chains of one length."""

    __slots__ = ("blocks", "ends")

    def __init__(self, ends: tuple[int, ...]) -> None:
        self.ends = ends
        self.blocks = level_blocks(ends)


class _PrefixLevel:
    """A level of some prompt in the window: ``count`` of the window's prompts reach it. ``above`` is the one before it."""

    __slots__ = ("count", "digest", "hot", "parent")

    def __init__(self, digest: Hashable, parent: "_PrefixLevel | None") -> None:
        self.digest = digest
        self.parent = parent
        self.count = 0
        self.hot = False


class HotPrefixes:
    """The sliding window and the hot prefixes of one model. Hashes are ``Hashable`` for the reason given in the mirror.

    A level's hash names everything before it, so the levels of all prompts make a tree: a prompt is counted and forgotten from its
    deepest level up, without asking for each by its hash.
    """

    def __init__(self) -> None:
        self._window: list[_PrefixLevel] = []  # the deepest of each prompt
        self._first_counted = 0  # before it the window has been forgotten
        self._levels: dict[Hashable, _PrefixLevel] = {}
        self._cuts: dict[int, _LevelCuts] = {}  # by how many blocks there are, of chains that are cut the usual way
        self._table: frozenset[Hashable] | None = None
        self.epoch = 0
        """Of the table that keys are made by; 0 while they are made by what was counted here, or a table is about to be left."""

    @property
    def has_lost_table(self) -> bool:
        """Whether keys are made by the last of the tables that nobody tells any more."""
        return self._table is not None and not self.epoch

    def __len__(self) -> int:
        return sum([level.hot for level in self._levels.values()])

    def routing_key(self, chain: PrefixChain) -> Hashable:
        """The routing key of a prompt: the hash of its first level that is not hot, else of the deepest."""
        if self._table is not None:
            return self._key_by_table(chain, self._table)
        hashes = self._hashes(chain)
        blocks = self._level_blocks(chain)
        for block in blocks:
            level = self._levels.get(hashes[block])
            if level is None or not level.hot:
                return hashes[block]
        return hashes[blocks[-1]]

    def observe(self, chain: PrefixChain, instances: int) -> Hashable:
        """Count one request, move its levels across the 2/n and 1/n thresholds, and say its routing key then. While a table is
        followed, nothing is counted."""
        table = self._table
        if table is not None:
            if self.epoch:
                return self._key_by_table(chain, table)
            self._count(chain, instances)
            if len(self._window) - self._first_counted >= window_size(instances):
                self._table = None
            return self._key_by_table(chain, table)
        return self._count(chain, instances)

    def set_shared_table(self, epoch: int, table: frozenset[Hashable]) -> None:
        """Make keys by this table from now on; epoch 0: count again, and leave the last table when enough has been."""
        if epoch:
            self._table = table
            self._window.clear()
            self._first_counted = 0
            self._levels.clear()
        self.epoch = epoch

    def top_prefixes(self, max_prefixes: int) -> list[Hashable]:
        """The hot prefixes as counted here, at most so many of them: those that most prompts share, in no order."""
        hot = [level for level in self._levels.values() if level.hot]
        if len(hot) > max_prefixes:
            hot.sort(key=_prompt_count, reverse=True)
        return [level.digest for level in hot[:max_prefixes]]

    def start_from_table(self, table: frozenset[Hashable]) -> None:
        """Go on from another's table: what it called hot is hot here, as far as it is known, until the own count says otherwise."""
        for level in self._levels.values():
            level.hot = level.digest in table

    def _key_by_table(self, chain: PrefixChain, table: frozenset[Hashable]) -> Hashable:
        hashes = self._hashes(chain)
        blocks = self._level_blocks(chain)
        for block in blocks:
            if hashes[block] not in table:
                return hashes[block]
        return hashes[blocks[-1]]

    def _count(self, chain: PrefixChain, instances: int) -> Hashable:
        window = self._window
        deepest = self._deepest_level(chain)
        window.append(deepest)
        level: _PrefixLevel | None = deepest
        while level is not None:
            level.count += 1
            level = level.parent
        max_prompts = window_size(instances)
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
            if not level.count:
                del self._levels[level.digest]
            level = level.parent

    def _deepest_level(self, chain: PrefixChain) -> _PrefixLevel:
        """The prompt's deepest level, made with those above it where they are new."""
        levels, hashes, blocks = self._levels, self._hashes(chain), self._level_blocks(chain)
        deepest: _PrefixLevel | None = None
        low, high = 0, len(blocks)
        while low < high:  # a known level has only known ones above it
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


def window_size(instances: int) -> int:
    """Of how many prompts the window is."""
    return max(WINDOW, WINDOW_PER_INSTANCE * instances)


def _prompt_count(level: _PrefixLevel) -> int:
    return level.count


def _update_hot_levels(deepest: _PrefixLevel, prompts: int, instances: int) -> None:
    """Levels that more than 2/n share are hot; the first that is shared by fewer cools when that is below 1/n."""
    first_shared_by_fewer = deepest
    level: _PrefixLevel | None = deepest
    while level is not None:  # the further up, the more share it
        if level.count * instances <= 2 * prompts:
            first_shared_by_fewer = level
        else:
            level.hot = True
        level = level.parent
    if first_shared_by_fewer.count * instances < prompts:
        first_shared_by_fewer.hot = False
