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

from dataclasses import dataclass

import xxhash

from fairlead.limits import Limits

BYTES_PER_TOKEN = 4
"""English text and the common tokenizers: 4 bytes a token; the router corrects it by what engines report."""

_STEPS = ((8 * 1024, 256), (64 * 1024, 1024))
_LAST_STEP = 4096


@dataclass(frozen=True, slots=True)
class PrefixChain:
    """``hashes[i]`` names the first ``ends[i]`` bytes of the prompt's text; ``tail`` names all of it, full block or
    not."""

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


def prefix_chain(text: bytes, *, secret: bytes, seed: bytes, blocks: int = Limits().prefix_blocks) -> PrefixChain:
    """Chain of ``text``; at most ``blocks`` blocks, what lies behind is left to the tail."""
    digest = xxhash.xxh3_64_intdigest
    view = memoryview(text)
    hashes: list[int] = []
    ends: list[int] = []
    state = chain_seed(secret, seed)
    position, size = 0, len(text)
    for limit, step in (*_STEPS, (size, _LAST_STEP)):
        stop = min(limit, size)
        while position + step <= stop and len(hashes) < blocks:
            state = digest(view[position : position + step], state)
            position += step
            hashes.append(state)
            ends.append(position)
    return PrefixChain(tuple(hashes), tuple(ends), digest(view[position:], state))
