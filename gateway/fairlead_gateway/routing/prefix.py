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

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache

import xxhash

from fairlead.limits import Limits

BYTES_PER_TOKEN = 4
"""English text and the common tokenizers: 4 bytes a token; the router corrects it by what engines report."""

_STEPS = ((8 * 1024, 256), (64 * 1024, 1024))
_LAST_STEP = 4096
_USUAL_BLOCKS = Limits().prefix_blocks


@dataclass(slots=True)
class PrefixChain:
    """``hashes[i]`` names the first ``ends[i]`` bytes of the prompt's text; ``tail`` names all of it, full block or
    not. Nobody changes a chain; it is not frozen because that makes it dear to build."""

    hashes: tuple[int, ...]
    ends: tuple[int, ...]
    tail: int

    @property
    def covered(self) -> int:
        """Bytes in full blocks."""
        return self.ends[-1] if self.ends else 0


def chain_seed(secret: bytes, seed: bytes) -> int:
    """The 64-bit start of a chain: the installation's secret and everything but the text that decides what is
    cached."""
    return xxhash.xxh3_64_intdigest(secret + b"\0" + seed)


def prefix_chain(text: bytes, *, secret: bytes, seed: bytes, blocks: int = _USUAL_BLOCKS) -> PrefixChain:
    """Chain of ``text``; at most ``blocks`` blocks, what lies behind is left to the tail."""
    digest = xxhash.xxh3_64_intdigest
    state = chain_seed(secret, seed)
    ends = block_ends(bisect_right(_all_ends(blocks), len(text)))
    hashes: list[int] = []
    view = memoryview(text) if len(text) > _STEPS[0][0] else text  # short pieces are cheaper to copy than to view
    start = 0
    for end in ends:
        state = digest(view[start:end], state)
        hashes.append(state)
        start = end
    return PrefixChain(tuple(hashes), ends, digest(view[start:], state))


@cache
def block_ends(count: int) -> tuple[int, ...]:
    """Where the first ``count`` blocks of any prompt end; equal counts give the same tuple."""
    return _all_ends(max(count, _USUAL_BLOCKS))[:count]


@cache
def _all_ends(count: int) -> tuple[int, ...]:
    ends: list[int] = []
    position = 0
    while len(ends) < count:
        position += next((step for limit, step in _STEPS if position < limit), _LAST_STEP)
        ends.append(position)
    return tuple(ends)
