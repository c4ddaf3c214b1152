"""A trace's prompt as router and engine see it, without its text.

A trace names the blocks of a prompt by ids: two prompts share exactly the blocks at their front whose ids are equal. From the
ids come the prefix chain that the gateway would hash out of the text, and the keys of the engine's cache blocks.
"""

from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from fairlead.errors import BadInput
from fairlead_gateway.routing import PrefixChain, prefix_chain
from fairlead_sim.traces import TRACE_BLOCK_TOKENS

BYTES_PER_TOKEN = 4
"""What replay's prompts have, and what the gateway assumes."""


def trace_chain(
    blocks: Sequence[int],
    prompt_tokens: float,
    *,
    secret: bytes,
    seed: bytes,
    block_tokens: int = TRACE_BLOCK_TOKENS,
) -> PrefixChain:
    """The chain that the gateway would find in a prompt of these blocks.

    Any text does that is equal where ids are equal; here it is each id, 8 bytes of it, over and over.
    """
    size = block_tokens * BYTES_PER_TOKEN
    text = b"".join([(_bytes(block) * (size // 8 + 1))[:size] for block in blocks])
    return prefix_chain(text[: int(prompt_tokens * BYTES_PER_TOKEN)], secret=secret, seed=seed)


def trace_keys(blocks: Sequence[int], prompt_tokens: int, block_tokens: int) -> tuple[int, ...]:
    """The keys of the full engine blocks: equal where all ids up to there are equal. Raises BadInput when blocks straddle."""
    each, rest = divmod(TRACE_BLOCK_TOKENS, block_tokens)
    if rest:
        raise BadInput(f"blocks of {block_tokens} tokens do not divide {TRACE_BLOCK_TOKENS}", field="block_tokens")
    key, keys = 0, []
    for index in range(min(prompt_tokens // block_tokens, len(blocks) * each)):
        key = xxh3_64_intdigest(_bytes(blocks[index // each]), key)
        keys.append(key)
    return tuple(keys)


def _bytes(block: int) -> bytes:
    return (block & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
