"""Slower memory behind the KV memory of a simulated engine.

A copy of every block is written there when the block is cached, and outlives its eviction from the
KV memory. A sequence whose prompt continues in slower memory waits until its blocks are loaded;
others go on meanwhile.

Source: the offloading connector of vLLM 0.32 as recorded with real engines: full blocks only, a
copy of each, and the least recently used go. A sequence that ends has used its blocks from the last
to the first, so that the start of a prompt stays longest. Loads take time in proportion to their
bytes.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TierOptions:
    """Slower memory.

    - name: ``cpu`` or ``disk`` of one engine, or ``remote``: one store that all engines reach.
    - tokens: the KV that it has room for.
    - token_seconds: the time to load the KV of one token.
    """

    name: str
    tokens: int
    token_seconds: float

    @property
    def is_shared(self) -> bool:
        return self.name == "remote"


class LowerTier:
    """The blocks in one slower memory, by key."""

    def __init__(self, options: TierOptions, block_tokens: int) -> None:
        self.name = options.name
        self.is_shared = options.is_shared
        self.block_seconds = options.token_seconds * block_tokens
        self._max_blocks = options.tokens // block_tokens
        self._keys: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, key: int) -> bool:
        return key in self._keys

    def store(self, keys: Iterable[int]) -> tuple[set[int], list[int]]:
        """Writes blocks, or notes their use. Returns the new ones, and those that had to go."""
        held, new = self._keys, set[int]()
        for key in keys:
            if key in held:
                held.move_to_end(key)
            else:
                held[key] = None
                new.add(key)
        gone = []
        while len(held) > self._max_blocks:
            key, _ = held.popitem(last=False)
            gone.append(key)
        return new, gone

    def touch(self, keys: Sequence[int]) -> None:
        """Notes the use of the blocks that a sequence releases; the first counts as the latest."""
        held = self._keys
        for key in reversed(keys):
            if key in held:
                held.move_to_end(key)

    def clear(self) -> None:
        self._keys.clear()


def find_tiers(tiers: Sequence[LowerTier], keys: Sequence[int]) -> list[LowerTier]:
    """Returns for each block, up to the first that no tier has, the first tier that has it."""
    found: list[LowerTier] = []
    for key in keys:
        holder = next((tier for tier in tiers if key in tier), None)
        if holder is None:
            break
        found.append(holder)
    return found
