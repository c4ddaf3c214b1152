"""The prefix hash of a prompt: a chain of keyed hashes over its raw JSON text.

A prompt is cut into blocks from its start. Each block's hash includes the one before, so equal
hashes mean equal text up to there. The text is what the client sent between the brackets of
`"messages"` (or `"prompt"`, `"input"`). Blocks grow: 256 B up to 8 KiB, 1 KiB up to 64 KiB, then 4
KiB. So a long prompt needs few hashes, and a match is never coarser than an eighth of its length.

The seed of the chain is everything else that decides what an engine caches: model, adapter, tenant
salt, tools. The key is the installation's secret, so clients cannot aim prompts at one instance.
The hash is XXH3-64.

Why: hashing tokens would cost hundreds of times more, and the engine's tokens are a function of
this text.
"""

from array import array
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Final

import xxhash

from fairlead.limits import Limits
from fairlead_gateway.native import BLOCK_HASHES

BYTES_PER_TOKEN: Final = 4
"""Typical for English text. The router corrects it by what engines report."""

_SMALL_BLOCK: Final = 256
_SMALL_UNTIL: Final = 8 * 1024
_MIDDLE_BLOCK: Final = 1024
_MIDDLE_UNTIL: Final = 64 * 1024
_LARGE_BLOCK: Final = 4096
_SMALL_BLOCKS: Final = _SMALL_UNTIL // _SMALL_BLOCK
_MIDDLE_BLOCKS: Final = (_MIDDLE_UNTIL - _SMALL_UNTIL) // _MIDDLE_BLOCK
_DEFAULT_BLOCKS: Final = Limits().prefix_blocks
_FEW_BLOCKS: Final = 64
"""Fewer are found without a cache, whose lookup costs 500 instructions; that is up to 40 KiB."""
_MAX_CACHED_STARTS: Final = 4_096
_HASH: Final[Callable[..., Any]] = xxhash.xxh3_64_intdigest
"""Typed `Any`, so that its results stay objects.

Why: compiled code would convert 64-bit numbers to its own integers and back at every step.
"""


_BLOCK_HASHES: Final[Callable[..., Any] | None] = BLOCK_HASHES


class PrefixChain:
    """The prefix hash of one prompt. It is never changed.

    - hashes: `hashes[i]` names the first `ends[i]` bytes of the text.
    - tail: names the whole text.

    Why: not frozen, since a frozen class is expensive to create.
    """

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
        """The number of bytes of the prompt in complete blocks."""
        return self.ends[-1] if self.ends else 0


def chain_seed(secret: bytes, seed: bytes) -> int:
    """Returns the 64-bit start of a chain from the secret and the seed."""
    start: int = _HASH(secret + b"\0" + seed)
    return start


class ChainStarts:
    """The starts of chains with one secret. Those of models are computed once."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._by_model: dict[str, Any] = {}

    def of_model(self, key: str) -> Any:
        """Returns the start of chains that only the model decides."""
        start = self._by_model.get(key)
        if start is None:
            if len(self._by_model) >= _MAX_CACHED_STARTS:
                self._by_model.clear()
            start = self._by_model[key] = self.of_seed(key.encode())
        return start

    def of_seed(self, seed: bytes) -> Any:
        """Returns the start of chains with any seed."""
        return chain_seed(self.secret, seed)


def prefix_chain(
    text: bytes, *, secret: bytes, seed: bytes, blocks: int = _DEFAULT_BLOCKS, start: int = 0, end: int = -1
) -> PrefixChain:
    """Returns the chain of `text`, or of its part from `start` to `end`.

    blocks: the maximum number of blocks; the tail names the rest.
    """
    return hash_blocks(text, chain_seed(secret, seed), blocks=blocks, start=start, end=end)


def hash_blocks(
    text: bytes, state: Any, *, blocks: int = _DEFAULT_BLOCKS, start: int = 0, end: int = -1
) -> PrefixChain:
    """Like `prefix_chain`, from the start of a chain.

    state: that start, an integer of 64 bits.
    """
    end = len(text) if end < 0 else end
    ends = block_ends(min(full_block_count(end - start), blocks))
    if _BLOCK_HASHES is not None:
        digests: tuple[int, ...] = _BLOCK_HASHES(text, start, ends, state)
        tail_start = start
        if ends:
            state, tail_start = digests[-1], start + ends[-1]
        return PrefixChain(digests, ends, _tail_hash(text, tail_start, end, state))
    hashes: list[Any] = []
    position = start
    view = None
    for block_end in ends:
        block_stop = start + block_end
        if block_stop - position <= _MIDDLE_BLOCK:  # a short part is cheaper to copy than to view
            state = _HASH(text[position:block_stop], state)
        else:
            view = memoryview(text) if view is None else view
            state = _HASH(view[position:block_stop], state)
        hashes.append(state)
        position = block_stop
    return PrefixChain(tuple(hashes), ends, _tail_hash(text, position, end, state))


def _tail_hash(text: bytes, start: int, end: int, state: Any) -> int:
    """Returns the hash of what follows the last block."""
    tail: int = _HASH(text[start:end] if end - start <= _MIDDLE_BLOCK else memoryview(text)[start:end], state)
    return tail


def full_block_count(size: int) -> int:
    """Returns how many complete blocks a text of `size` bytes has."""
    if size < _SMALL_UNTIL:
        return size // _SMALL_BLOCK
    if size < _MIDDLE_UNTIL:
        return _SMALL_BLOCKS + (size - _SMALL_UNTIL) // _MIDDLE_BLOCK
    return _SMALL_BLOCKS + _MIDDLE_BLOCKS + (size - _MIDDLE_UNTIL) // _LARGE_BLOCK


def block_ends(count: int) -> tuple[int, ...]:
    """Returns the ends of the first `count` blocks in bytes; the same object for equal counts."""
    return _FEW_ENDS[count] if count < _FEW_BLOCKS else _many_ends(count)


@cache
def _many_ends(count: int) -> tuple[int, ...]:
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


_FEW_ENDS: Final[tuple[tuple[int, ...], ...]] = tuple(
    _all_ends(max(count, _DEFAULT_BLOCKS))[:count] for count in range(_FEW_BLOCKS)
)


def shared_bytes(chain: PrefixChain, other: PrefixChain) -> int:
    """Returns how many bytes in complete blocks two prompts have in common from their start."""
    count = 0
    for digest, other_digest in zip(chain.hashes, other.hashes, strict=False):
        if digest != other_digest:
            break
        count += 1
    return chain.ends[count - 1] if count else 0


def unpack_hashes(packed: bytes) -> frozenset[Hashable]:
    """Returns 64-bit hashes from their packed bytes, in native order."""
    return frozenset(array("Q", packed))
