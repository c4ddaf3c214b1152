"""The block prefix cache of one simulated engine.

KV memory is a pool of equal blocks. A block is *empty*, *held* by running sequences (counted references), or *kept*: unheld but
still findable under its key. A key is the hash of its tokens chained to its parent's key, so one equal key means an equal
prefix. When no empty block is left, the kept block unused for the longest time goes; a sequence lets its blocks go tail
first, so a long prefix loses its end before its beginning. Two sequences that compute the same prefix side by side make two
copies under one key. Every copy that becomes findable is announced once and every copy that goes is announced once:
what was stored minus what was removed is what is resident.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """A run of blocks became findable. ``parent`` is None when it starts a prompt; only then does ``salt`` apply.

    ``tokens`` are the ids of the whole run (``len(keys) * block_tokens``), or None where the engine knows no ids.
    """

    keys: tuple[int, ...]
    parent: int | None
    tokens: tuple[int, ...] | None
    block_tokens: int
    adapter: str | None = None
    salt: str | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class BlockEvicted:
    """One copy of one block is gone."""

    key: int


@dataclass(frozen=True, slots=True)
class CacheCleared:
    """Every block is gone."""


KvEvent = BlocksStored | BlockEvicted | CacheCleared


def chain_root(*, salt: str | None = None, adapter: str | None = None) -> int:
    """What the first block of a prompt is chained to: equal tokens under another adapter or salt are other blocks."""
    if salt is None and adapter is None:
        return 0
    framed = (
        f"{len(adapter) if adapter is not None else '-'}:{adapter or ''}:{'-' if salt is None else '+'}{salt or ''}"
    )
    return xxh3_64_intdigest(framed.encode("utf-8", "surrogatepass"))


def chain_key(parent: int, tokens: Sequence[int]) -> int:
    """The key of one full block behind ``parent`` (64 bits)."""
    return xxh3_64_intdigest(array("I", tokens).tobytes(), parent)


def block_keys(
    tokens: Sequence[int], block_tokens: int, *, salt: str | None = None, adapter: str | None = None
) -> tuple[int, ...]:
    """The chained keys of the full blocks of ``tokens``; a part of a block at the end has none."""
    data = array("I", tokens).tobytes()
    size = array("I").itemsize * block_tokens
    key = chain_root(salt=salt, adapter=adapter)
    keys = []
    for offset in range(0, len(data) - size + 1, size):
        key = xxh3_64_intdigest(data[offset : offset + size], key)
        keys.append(key)
    return tuple(keys)


class BlockPool:
    """``blocks`` blocks of ``block_tokens`` tokens each. ``recording``: what happens is collected until it is drained."""

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
        """Blocks that running sequences refer to."""
        return self.blocks - len(self._free) - len(self._evictable)

    @property
    def allocatable(self) -> int:
        """Blocks that can be taken: empty ones and kept ones."""
        return len(self._free) + len(self._evictable)

    @property
    def resident(self) -> int:
        """Findable blocks, held or kept, copies counted."""
        return len(self._block_of) + sum(len(copies) for copies in self._copies.values())

    def match(self, keys: Sequence[int], limit: int) -> list[int]:
        """The blocks of the longest findable prefix of ``keys``, at most ``limit``; nothing is held by looking."""
        block_of, blocks = self._block_of, []
        for key in keys[:limit]:
            block = block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def count_evictable(self, blocks: Sequence[int]) -> int:
        """How many of these nobody holds, so that holding them leaves fewer to take."""
        references = self._references
        return sum(1 for block in blocks if not references[block])

    def key_in(self, block: int) -> int | None:
        """The key of what is findable in a block; None when that is nothing."""
        return self._keys[block]

    def acquire(self, blocks: Sequence[int]) -> None:
        """Refer to blocks found by ``match``."""
        references, evictable = self._references, self._evictable
        for block in blocks:
            if not references[block]:
                del evictable[block]
            references[block] += 1

    def allocate(self) -> int | None:
        """One block to write to, held once; None when every block is held."""
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
        """Make freshly written blocks findable under ``keys``; ``event`` tells of it, None where nobody listens."""
        for block, key in zip(blocks, keys, strict=True):
            self._keys[block] = key
            if self._block_of.setdefault(key, block) != block:
                self._copies.setdefault(key, []).append(block)
        if event is not None:
            self._events.append(event)

    def publish(self, event: BlocksStored) -> None:
        """Tell again of blocks that were found, for listeners that missed them."""
        self._events.append(event)

    def release(self, blocks: Sequence[int]) -> None:
        """Let one reference of each go, the tail first."""
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
        """Forget every block; False, and nothing happens, while any is held."""
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
        """The events since the last call, in order."""
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
