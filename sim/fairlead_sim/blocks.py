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
class Stored:
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
class Removed:
    """One copy of one block is gone."""

    key: int


@dataclass(frozen=True, slots=True)
class Cleared:
    """Every block is gone."""


KvEvent = Stored | Removed | Cleared


def chain_root(*, salt: str | None = None, adapter: str | None = None) -> int:
    """What the first block of a prompt is chained to: equal tokens under another adapter or salt are other blocks."""
    if salt is None and adapter is None:
        return 0
    framed = (
        f"{len(adapter) if adapter is not None else '-'}:{adapter or ''}:{'-' if salt is None else '+'}{salt or ''}"
    )
    return xxh3_64_intdigest(framed.encode("utf-8", "surrogatepass"))


def chained(parent: int, tokens: Sequence[int]) -> int:
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
    for at in range(0, len(data) - size + 1, size):
        key = xxh3_64_intdigest(data[at : at + size], key)
        keys.append(key)
    return tuple(keys)


class BlockPool:
    """``blocks`` blocks of ``block_tokens`` tokens each. ``recording``: what happens is collected until it is drained."""

    def __init__(self, blocks: int, block_tokens: int, *, events: bool = True) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.recording = events
        self._events: list[KvEvent] = []
        self._references = [0] * blocks
        self._key_of: list[int | None] = [None] * blocks
        self._empty = list(range(blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._found: dict[int, int] = {}
        self._copies: dict[int, list[int]] = {}

    @property
    def held(self) -> int:
        """Blocks that running sequences refer to."""
        return self.blocks - len(self._empty) - len(self._kept)

    @property
    def available(self) -> int:
        """Blocks that can be taken: empty ones and kept ones."""
        return len(self._empty) + len(self._kept)

    @property
    def resident(self) -> int:
        """Findable blocks, held or kept, copies counted."""
        return len(self._found) + sum(len(others) for others in self._copies.values())

    def match(self, keys: Sequence[int], limit: int) -> list[int]:
        """The blocks of the longest findable prefix of ``keys``, at most ``limit``; nothing is held by looking."""
        found, blocks = self._found, []
        for key in keys[:limit]:
            block = found.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def kept(self, blocks: Sequence[int]) -> int:
        """How many of these nobody holds, so that holding them leaves fewer to take."""
        references = self._references
        return sum(1 for block in blocks if not references[block])

    def content(self, block: int) -> int | None:
        """The key of what is findable in a block; None when that is nothing."""
        return self._key_of[block]

    def hold(self, blocks: Sequence[int]) -> None:
        """Refer to blocks found by ``match``."""
        references, kept = self._references, self._kept
        for block in blocks:
            if not references[block]:
                del kept[block]
            references[block] += 1

    def take(self) -> int | None:
        """One block to write to, held once; None when every block is held."""
        if self._empty:
            block = self._empty.pop()
        elif self._kept:
            block, _ = self._kept.popitem(last=False)
            self._forget(block)
        else:
            return None
        self._references[block] = 1
        return block

    def store(self, blocks: Sequence[int], keys: Sequence[int], event: Stored | None) -> None:
        """Make freshly written blocks findable under ``keys``; ``event`` tells of it, None where nobody listens."""
        for block, key in zip(blocks, keys, strict=True):
            self._key_of[block] = key
            if self._found.setdefault(key, block) != block:
                self._copies.setdefault(key, []).append(block)
        if event is not None:
            self._events.append(event)

    def announce(self, event: Stored) -> None:
        """Tell again of blocks that were found, for listeners that missed them."""
        self._events.append(event)

    def release(self, blocks: Sequence[int]) -> None:
        """Let one reference of each go, the tail first."""
        references, key_of = self._references, self._key_of
        for block in reversed(blocks):
            references[block] -= 1
            if references[block]:
                continue
            if key_of[block] is None:
                self._empty.append(block)
            else:
                self._kept[block] = None

    def clear(self) -> bool:
        """Forget every block; False, and nothing happens, while any is held."""
        if self.held:
            return False
        self._empty = list(range(self.blocks - 1, -1, -1))
        self._key_of = [None] * self.blocks
        self._kept.clear()
        self._found.clear()
        self._copies.clear()
        if self.recording:
            self._events.append(Cleared())
        return True

    def drain(self) -> list[KvEvent]:
        """The events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _forget(self, block: int) -> None:
        key = self._key_of[block]
        assert key is not None
        self._key_of[block] = None
        others = self._copies.get(key)
        if others is None:
            del self._found[key]
        else:
            if self._found[key] == block:
                self._found[key] = others.pop(0)
            else:
                others.remove(block)
            if not others:
                del self._copies[key]
        if self.recording:
            self._events.append(Removed(key))
