"""What of a prompt decides its route: a chain of keyed hashes over its raw JSON text.

Two prompts share cached work only where they begin alike, so a prompt is cut into blocks from its start and every
block's hash is chained to the one before: equal hash means equal text up to there. The text is what the client sent
between the brackets of ``"messages"`` (or ``"prompt"``, ``"input"``), hashed as bytes: hashing the tokens would cost
hundreds of times more, and the engine's tokens are a function of this text anyway. Blocks grow (256 B up to 8 KiB, 1
KiB up to 64 KiB, then 4 KiB), so a long prompt costs few hashes and a match is never coarser than an eighth of its
length.

The chain is seeded with everything else that decides what the engine caches (model, adapter, tenant salt, tools), and
keyed by the installation's secret: without the secret nobody can aim many prompts at one instance. Hash: XXH3-64.
"""

from array import array
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Final

import xxhash

from fairlead.limits import Limits

BYTES_PER_TOKEN: Final = 4
"""English text and the common tokenizers: 4 bytes a token; the router corrects it by what engines report."""

_SMALL_BLOCK: Final = 256
_SMALL_UNTIL: Final = 8 * 1024
_MIDDLE_BLOCK: Final = 1024
_MIDDLE_UNTIL: Final = 64 * 1024
_LARGE_BLOCK: Final = 4096
_SMALL_BLOCKS: Final = _SMALL_UNTIL // _SMALL_BLOCK
_MIDDLE_BLOCKS: Final = (_MIDDLE_UNTIL - _SMALL_UNTIL) // _MIDDLE_BLOCK
_DEFAULT_BLOCKS: Final = Limits().prefix_blocks
_HASH: Final[Callable[[Any, Any], Any]] = xxhash.xxh3_64_intdigest
"""Its numbers stay objects: as compiled code's own integers 64 bits would be wrapped and unwrapped at every step."""


class PrefixChain:
    """``hashes[i]`` names the first ``ends[i]`` bytes of the prompt's text; ``tail`` names all of it, full block or
    not. Nobody changes a chain; it is not frozen because that makes it dear to build."""

    __slots__ = ("ends", "hashes", "tail")

    def __init__(self, hashes: tuple[int, ...], ends: tuple[int, ...], tail: int) -> None:
        self.hashes = hashes
        self.ends = ends
        self.tail = tail

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PrefixChain):
            return False
        return self.tail == other.tail and self.hashes == other.hashes and self.ends == other.ends

    @property
    def full_block_bytes(self) -> int:
        """Bytes in full blocks."""
        return self.ends[-1] if self.ends else 0


def chain_seed(secret: bytes, seed: bytes) -> int:
    """The 64-bit start of a chain: the installation's secret and everything but the text that decides what is
    cached."""
    return xxhash.xxh3_64_intdigest(secret + b"\0" + seed)


def prefix_chain(
    text: bytes, *, secret: bytes, seed: bytes, blocks: int = _DEFAULT_BLOCKS, start: int = 0, end: int = -1
) -> PrefixChain:
    """Chain of ``text``, or of its part from ``start`` to ``end``; at most ``blocks`` blocks, the tail names the rest."""
    end = len(text) if end < 0 else end
    ends = block_ends(min(full_block_count(end - start), blocks))
    state: Any = chain_seed(secret, seed)
    hashes: list[Any] = []
    position = start
    view = None
    for block_end in ends:
        block_stop = start + block_end
        if block_stop - position <= _MIDDLE_BLOCK:  # short pieces are cheaper to copy than to view
            state = _HASH(text[position:block_stop], state)
        else:
            view = memoryview(text) if view is None else view
            state = _HASH(view[position:block_stop], state)
        hashes.append(state)
        position = block_stop
    tail = _HASH(text[position:end] if end - position <= _MIDDLE_BLOCK else memoryview(text)[position:end], state)
    return PrefixChain(tuple(hashes), ends, tail)


def full_block_count(size: int) -> int:
    """How many blocks ``size`` bytes fill."""
    if size < _SMALL_UNTIL:
        return size // _SMALL_BLOCK
    if size < _MIDDLE_UNTIL:
        return _SMALL_BLOCKS + (size - _SMALL_UNTIL) // _MIDDLE_BLOCK
    return _SMALL_BLOCKS + _MIDDLE_BLOCKS + (size - _MIDDLE_UNTIL) // _LARGE_BLOCK


@cache
def block_ends(count: int) -> tuple[int, ...]:
    """Where the first ``count`` blocks of any prompt end; equal counts give the same tuple."""
    return _all_ends(max(count, _DEFAULT_BLOCKS))[:count]


@cache
def _all_ends(count: int) -> tuple[int, ...]:
    ends: list[int] = []
    position = 0
    while len(ends) < count:
        position += (
            _SMALL_BLOCK if position < _SMALL_UNTIL else _MIDDLE_BLOCK if position < _MIDDLE_UNTIL else _LARGE_BLOCK
        )
        ends.append(position)
    return tuple(ends)


def unpack_hashes(packed: bytes) -> frozenset[Hashable]:
    """The hashes that one half of a ``Hot`` holds."""
    return frozenset(array("Q", packed))
