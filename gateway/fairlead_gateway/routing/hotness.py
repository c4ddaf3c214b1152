"""How deep into a prompt its routing key reaches: deeper exactly where many prompts begin alike.

A key that is too short sends half the traffic to one pair of homes (every request may share a system prompt); one
that is too long forgets that two prompts share anything. DualMap's answer, kept here: look at the last requests; a
prefix that more than 2/n of them share (n instances: more than its pair can carry) is *hot* and the key reaches one
level deeper; a hot prefix cools when its share falls below 1/n. What we changed: the key starts at 4 KiB of text
(two of the paper's 512-token blocks; one block would be the same for a whole trace), levels are byte positions (256
B, 512 B, 1, 2, 4 KiB, then every 2 KiB), and the window is counted once per request.

Invariant: the depth of a key depends only on the prompts seen (in order) and n, never on a clock or on load.
"""

from collections import deque
from functools import cache

from fairlead_gateway.routing.prefix import PrefixChain, block_ends

BASE_BYTES = 4096
LEVEL_BYTES = 2048
LEVELS_DEEPEST = 16
WINDOW = 200
WINDOW_PER_INSTANCE = 25
SAMPLES_LEAST = 20


def levels(chain: PrefixChain) -> tuple[int, ...]:
    """The hashes at which a key may end, shallow to deep: the base first (or the deepest block of a shorter prompt)."""
    ends, hashes = chain.ends, chain.hashes
    if not ends:
        return (chain.tail,)
    if ends is block_ends(len(ends)):  # cut the usual way: where the levels end is known
        if ends[-1] < BASE_BYTES:
            return (hashes[(1 << (len(ends).bit_length() - 1)) - 1],)
        return tuple([hashes[index] for index in _level_blocks(len(ends))])
    if ends[-1] < BASE_BYTES:
        # A short prompt: the deepest block that ends at a power of two, so that its next turn often keeps the key.
        return (
            next(digest for end, digest in zip(reversed(ends), reversed(hashes), strict=True) if end & (end - 1) == 0),
        )
    return tuple([hashes[index] for index in _at_levels(ends)])


@cache
def _level_blocks(count: int) -> tuple[int, ...]:
    return _at_levels(block_ends(count))


def _at_levels(ends: tuple[int, ...]) -> tuple[int, ...]:
    """The blocks that end where a level does."""
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


class HotPrefixes:
    """The sliding window and the set of hot prefixes of one model."""

    def __init__(self) -> None:
        self._window: deque[tuple[int, ...]] = deque()
        self._counts: dict[int, int] = {}
        self._hot: set[int] = set()

    def __len__(self) -> int:
        return len(self._hot)

    def key(self, found: tuple[int, ...]) -> int:
        """The routing key of a prompt with these levels: the first level that is not hot, else the deepest."""
        for digest in found[:-1]:
            if digest not in self._hot:
                return digest
        return found[-1]

    def observe(self, found: tuple[int, ...], instances: int) -> None:
        """Count one request and move its levels across the 2/n and 1/n thresholds."""
        window = self._window
        window.append(found)
        counts = self._counts
        for digest in found:
            counts[digest] = counts.get(digest, 0) + 1
        wanted = max(WINDOW, WINDOW_PER_INSTANCE * instances)
        while len(window) > wanted:
            self._forget(window.popleft(), wanted, instances)
        seen = len(window)
        if seen < SAMPLES_LEAST:
            return
        for digest in found:
            if counts[digest] * instances > 2 * seen:
                self._hot.add(digest)
            else:
                if counts[digest] * instances < seen:
                    self._hot.discard(digest)
                break

    def _forget(self, found: tuple[int, ...], seen: int, instances: int) -> None:
        counts = self._counts
        for digest in found:
            left = counts[digest] - 1
            if left:
                counts[digest] = left
            else:
                del counts[digest]
            if digest in self._hot and left * instances < seen:
                self._hot.discard(digest)
