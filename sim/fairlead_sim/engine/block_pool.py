"""The block prefix cache of one simulated engine.

KV memory is a pool of equal blocks. A block is in one of three states:

- *free*: empty
- *referenced*: used by running sequences, which are counted
- *evictable*: not referenced, but still cached under its key

A key is the hash of the block's tokens, chained to the key of its parent. Equal keys mean equal
prefixes. When no block is free, the least recently used evictable block is evicted. A sequence
releases its last block first, so that a long prefix loses its end before its start.

Two sequences that compute the same prefix at the same time make two copies under one key. Every
copy is reported once when it is stored and once when it is evicted. What was stored minus what was
evicted is what is resident.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """The event of a run of blocks that became cached.

    - parent: None at the start of a prompt; ``salt`` applies only there.
    - tokens: the ids of the whole run (``len(keys) * block_tokens``); None if they are unknown.
    - tier: ``gpu``, or the name of slower memory (``lower_tiers``).
    """

    keys: tuple[int, ...]
    parent: int | None
    tokens: tuple[int, ...] | None
    block_tokens: int
    adapter: str | None = None
    salt: str | None = None
    session: str | None = None
    tier: str = "gpu"


@dataclass(frozen=True, slots=True)
class BlockEvicted:
    """The event of one copy of one block that was evicted."""

    key: int
    tier: str = "gpu"


@dataclass(frozen=True, slots=True)
class CacheCleared:
    """The event of a cache that was emptied."""


KvEvent = BlocksStored | BlockEvicted | CacheCleared


def chain_root(*, salt: str | None = None, adapter: str | None = None) -> int:
    """Returns the key to which the first block of a prompt is chained.

    Equal tokens under another adapter or salt are other blocks.
    """
    if salt is None and adapter is None:
        return 0
    framed = (
        f"{len(adapter) if adapter is not None else '-'}:{adapter or ''}:{'-' if salt is None else '+'}{salt or ''}"
    )
    return xxh3_64_intdigest(framed.encode("utf-8", "surrogatepass"))


def chain_key(parent: int, tokens: Sequence[int]) -> int:
    return xxh3_64_intdigest(array("I", tokens).tobytes(), parent)


def block_keys(
    tokens: Sequence[int], block_tokens: int, *, salt: str | None = None, adapter: str | None = None
) -> tuple[int, ...]:
    """Returns the chained keys of the full blocks of ``tokens``; a partial block at the end has
    none.
    """
    data = array("I", tokens).tobytes()
    size = array("I").itemsize * block_tokens
    key = chain_root(salt=salt, adapter=adapter)
    keys = []
    for offset in range(0, len(data) - size + 1, size):
        key = xxh3_64_intdigest(data[offset : offset + size], key)
        keys.append(key)
    return tuple(keys)


class BlockPool:
    """A pool of ``blocks`` blocks, each of ``block_tokens`` tokens.

    records_events: events are collected until ``drain_events``.
    """

    def __init__(self, blocks: int, block_tokens: int, *, events: bool = True) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.records_events = events
        self._events: list[KvEvent] = []
        self._references = [0] * blocks
        self._keys: list[int | None] = [None] * blocks
        self._free = list(range(blocks - 1, -1, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[int, int] = {}
        self._copies: dict[int, list[int]] = {}

    @property
    def referenced(self) -> int:
        return self.blocks - len(self._free) - len(self._evictable)

    @property
    def allocatable(self) -> int:
        return len(self._free) + len(self._evictable)

    @property
    def resident(self) -> int:
        return len(self._block_of) + sum(len(copies) for copies in self._copies.values())

    def match(self, keys: Sequence[int], limit: int) -> list[int]:
        """Returns the blocks of the longest cached prefix of ``keys``, at most ``limit``.

        The match acquires nothing.
        """
        block_of, blocks = self._block_of, []
        for key in keys[:limit]:
            block = block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def count_evictable(self, blocks: Sequence[int]) -> int:
        references = self._references
        return sum(1 for block in blocks if not references[block])

    def key_in(self, block: int) -> int | None:
        """Returns the key of the cached content of a block; None if there is none."""
        return self._keys[block]

    def acquire(self, blocks: Sequence[int]) -> None:
        """Adds a reference to blocks that ``match`` returned."""
        references, evictable = self._references, self._evictable
        for block in blocks:
            if not references[block]:
                del evictable[block]
            references[block] += 1

    def allocate(self) -> int | None:
        """Returns an empty block with one reference; None if all blocks are referenced."""
        if self._free:
            block = self._free.pop()
        elif self._evictable:
            block, _ = self._evictable.popitem(last=False)
            self._evict(block)
        else:
            return None
        self._references[block] = 1
        return block

    def register(self, blocks: Sequence[int], keys: Sequence[int], event: BlocksStored | None) -> None:
        """Caches freshly written blocks under ``keys`` and records ``event``, if there is one."""
        for block, key in zip(blocks, keys, strict=True):
            self._keys[block] = key
            if self._block_of.setdefault(key, block) != block:
                self._copies.setdefault(key, []).append(block)
        if event is not None:
            self._events.append(event)

    def publish(self, event: BlocksStored | BlockEvicted) -> None:
        """Records an event that changes nothing here.

        Blocks were cached already, and listeners missed them, or they are in slower memory.
        """
        self._events.append(event)

    def release(self, blocks: Sequence[int]) -> None:
        """Drops one reference of each block, the last block first."""
        references, key_of = self._references, self._keys
        for block in reversed(blocks):
            references[block] -= 1
            if references[block]:
                continue
            if key_of[block] is None:
                self._free.append(block)
            else:
                self._evictable[block] = None

    def clear(self) -> bool:
        """Evicts every block. Returns False and does nothing while any block is referenced."""
        if self.referenced:
            return False
        self._free = list(range(self.blocks - 1, -1, -1))
        self._keys = [None] * self.blocks
        self._evictable.clear()
        self._block_of.clear()
        self._copies.clear()
        if self.records_events:
            self._events.append(CacheCleared())
        return True

    def drain_events(self) -> list[KvEvent]:
        events, self._events = self._events, []
        return events

    def _evict(self, block: int) -> None:
        key = self._keys[block]
        assert key is not None
        self._keys[block] = None
        copies = self._copies.get(key)
        if copies is None:
            del self._block_of[key]
        else:
            if self._block_of[key] == block:
                self._block_of[key] = copies.pop(0)
            else:
                copies.remove(block)
            if not copies:
                del self._copies[key]
        if self.records_events:
            self._events.append(BlockEvicted(key))
