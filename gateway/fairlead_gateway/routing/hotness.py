"""How deep into a prompt its routing key reaches: deeper exactly where many prompts begin alike.

A key that is too short sends half the traffic to one pair of homes (every request may share a system prompt); one
that is too long forgets that two prompts share anything. DualMap's answer, kept here: look at the last requests; a
prefix that more than 2/n of them share (n instances: more than its pair can carry) is *hot* and the key reaches one
level deeper; a hot prefix cools when its share falls below 1/n. What we changed: the key starts at 4 KiB of text
(two of the paper's 512-token blocks; one block would be the same for a whole trace), levels are byte positions (256
B, 512 B, 1, 2, 4 KiB, then every 2 KiB), and the window is counted once per request.

Where several gateways share a Redis, one of them counts for all (``fairlead_kvstore.exchange.hot``): its table, whole and with
its epoch, then takes the place of the own count, and equal epochs give equal keys. When there is no table any more, the last one is
gone by until the own window is full again, so that keys do not all change at that moment.

Invariant: the depth of a key depends only on the prompts seen (in order) and n, or on the table, never on a clock or on load.
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


_ONLY: Final = (0,)


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


class _Level:
    """A level of some prompt in the window: ``count`` of the window's prompts reach it. ``above`` is the one before it."""

    __slots__ = ("above", "count", "digest", "hot")

    def __init__(self, digest: Hashable, above: "_Level | None") -> None:
        self.digest = digest
        self.above = above
        self.count = 0
        self.hot = False


class HotPrefixes:
    """The sliding window and the hot prefixes of one model. Hashes are ``Hashable`` for the reason given in the mirror.

    A level's hash names everything before it, so the levels of all prompts make a tree: a prompt is counted and forgotten from its
    deepest level up, without asking for each by its hash.
    """

    def __init__(self) -> None:
        self._window: list[_Level] = []  # the deepest of each prompt
        self._oldest = 0  # before it the window has been forgotten
        self._levels: dict[Hashable, _Level] = {}
        self._cuts: dict[int, _Cut] = {}  # by how many blocks there are, of chains that are cut the usual way
        self._table: frozenset[Hashable] | None = None
        self.epoch = 0
        """Of the table that keys are made by; 0 while they are made by what was counted here, or a table is about to be left."""

    @property
    def lost(self) -> bool:
        """Whether keys are made by the last of the tables that nobody tells any more."""
        return self._table is not None and not self.epoch

    def __len__(self) -> int:
        return sum([level.hot for level in self._levels.values()])

    def key(self, chain: PrefixChain) -> Hashable:
        """The routing key of a prompt: the hash of its first level that is not hot, else of the deepest."""
        if self._table is not None:
            return self._by_table(chain, self._table)
        hashes = self._hashes(chain)
        blocks = self._blocks(chain)
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
                return self._by_table(chain, table)
            self._count(chain, instances)
            if len(self._window) - self._oldest >= wanted(instances):
                self._table = None
            return self._by_table(chain, table)
        return self._count(chain, instances)

    def follow(self, epoch: int, table: frozenset[Hashable]) -> None:
        """Make keys by this table from now on; epoch 0: count again, and leave the last table when enough has been."""
        if epoch:
            self._table = table
            self._window.clear()
            self._oldest = 0
            self._levels.clear()
        self.epoch = epoch

    def table(self, most: int) -> list[Hashable]:
        """The hot prefixes as counted here, at most so many of them: those that most prompts share, in no order."""
        hot = [level for level in self._levels.values() if level.hot]
        if len(hot) > most:
            hot.sort(key=_shared_by, reverse=True)
        return [level.digest for level in hot[:most]]

    def adopt(self, table: frozenset[Hashable]) -> None:
        """Go on from another's table: what it called hot is hot here, as far as it is known, until the own count says otherwise."""
        for level in self._levels.values():
            level.hot = level.digest in table

    def _by_table(self, chain: PrefixChain, table: frozenset[Hashable]) -> Hashable:
        hashes = self._hashes(chain)
        blocks = self._blocks(chain)
        for block in blocks:
            if hashes[block] not in table:
                return hashes[block]
        return hashes[blocks[-1]]

    def _count(self, chain: PrefixChain, instances: int) -> Hashable:
        window = self._window
        deepest = self._deepest(chain)
        window.append(deepest)
        level: _Level | None = deepest
        while level is not None:
            level.count += 1
            level = level.above
        most = wanted(instances)
        while len(window) - self._oldest > most:
            self._forget(window[self._oldest], most, instances)
            self._oldest += 1
        if self._oldest > most:
            del window[: self._oldest]
            self._oldest = 0
        seen = len(window) - self._oldest
        if seen >= SAMPLES_LEAST:
            _judge(deepest, seen, instances)
        key, level = deepest, deepest
        while level is not None:
            if not level.hot:
                key = level
            level = level.above
        return key.digest

    def _forget(self, deepest: _Level, seen: int, instances: int) -> None:
        level: _Level | None = deepest
        while level is not None:
            level.count -= 1
            if level.count * instances < seen:
                level.hot = False
            if not level.count:
                del self._levels[level.digest]
            level = level.above

    def _deepest(self, chain: PrefixChain) -> _Level:
        """The prompt's deepest level, made with those above it where they are new."""
        levels, hashes, blocks = self._levels, self._hashes(chain), self._blocks(chain)
        found: _Level | None = None
        low, high = 0, len(blocks)
        while low < high:  # a known level has only known ones above it
            middle = (low + high) >> 1
            level = levels.get(hashes[blocks[middle]])
            if level is None:
                high = middle
            else:
                low, found = middle + 1, level
        while found is None or low < len(blocks):
            digest = hashes[blocks[low]]
            found = levels[digest] = _Level(digest, found)
            low += 1
        return found

    def _hashes(self, chain: PrefixChain) -> tuple[Hashable, ...]:
        hashes: tuple[Hashable, ...] = chain.hashes
        return hashes or (chain.tail,)

    def _blocks(self, chain: PrefixChain) -> tuple[int, ...]:
        ends = chain.ends
        count = len(ends)
        if not count:
            return _ONLY
        cut = self._cuts.get(count)
        if cut is None or cut.ends is not ends:
            cut = _Cut(ends)
            if ends is block_ends(count):
                self._cuts[count] = cut
        return cut.blocks


def wanted(instances: int) -> int:
    """Of how many prompts the window is."""
    return max(WINDOW, WINDOW_PER_INSTANCE * instances)


def _shared_by(level: _Level) -> int:
    return level.count


def _judge(deepest: _Level, seen: int, instances: int) -> None:
    """Levels that more than 2/n share are hot; the first that is shared by fewer cools when that is below 1/n."""
    over = deepest
    above: _Level | None = deepest
    while above is not None:  # the further up, the more share it
        if above.count * instances <= 2 * seen:
            over = above
        else:
            above.hot = True
        above = above.above
    if over.count * instances < seen:
        over.hot = False
