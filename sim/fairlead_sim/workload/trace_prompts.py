"""A trace's prompt as router and engine see it, without its text.

A trace names the blocks of a prompt by ids. Two prompts share exactly the first blocks with equal
ids. The ids yield the prefix chain that a gateway would hash from the text, and the keys of the
engine's cache blocks.
"""

from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from fairlead.errors import BadInput
from fairlead_gateway.routing import PrefixChain
from fairlead_gateway.routing.prefix.prefix_hash import PREFIX_BLOCKS, block_ends, chain_seed, full_block_count
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

BYTES_PER_TOKEN = 4
"""The ratio of replayed prompts, and the gateway's assumption."""


class TracePromptCache:
    """Prefix chains and block keys by request id, which simulations of the same requests share."""

    def __init__(self, block_tokens: int, *, secret: bytes = b"", seed: bytes = b"") -> None:
        self._block_tokens = block_tokens
        self._secret = secret
        self._seed = seed
        self._chains: dict[str, PrefixChain] = {}
        self._keys: dict[str, tuple[int, ...]] = {}

    def prefix_chain(self, request: TraceRequest) -> PrefixChain:
        """Returns the chain that a gateway would compute."""
        chain = self._chains.get(request.id)
        if chain is None:
            chain = trace_chain(request.blocks, request.prompt_tokens, secret=self._secret, seed=self._seed)
            self._chains[request.id] = chain
        return chain

    def block_keys(self, request: TraceRequest) -> tuple[int, ...]:
        """Returns the keys of the engine's full blocks."""
        keys = self._keys.get(request.id)
        if keys is None:
            keys = self._keys[request.id] = trace_keys(request.blocks, request.prompt_tokens, self._block_tokens)
        return keys


def trace_chain(
    blocks: Sequence[int],
    prompt_tokens: float,
    *,
    secret: bytes,
    seed: bytes,
    block_tokens: int = TRACE_BLOCK_TOKENS,
) -> PrefixChain:
    """Returns the chain that a gateway would find in a prompt of these blocks.

    Hashes are equal exactly where those of the texts would be. They cover the ids of the blocks
    between two ends in place of the text.
    """
    size = block_tokens * BYTES_PER_TOKEN
    length = min(int(prompt_tokens * BYTES_PER_TOKEN), size * len(blocks))
    ends = block_ends(min(full_block_count(length), PREFIX_BLOCKS))
    block_ids = [_id_bytes(block) for block in blocks]
    state, at = chain_seed(secret, seed), 0
    hashes = []
    for end in ends:
        state = xxh3_64_intdigest(
            block_ids[at // size] if end <= at - at % size + size else _block_ids_between(block_ids, at, end, size),
            state,
        )
        hashes.append(state)
        at = end
    rest = _block_ids_between(block_ids, at, length, size) + length.to_bytes(8, "little") if length > at else b""
    return PrefixChain(tuple(hashes), ends, xxh3_64_intdigest(rest, state))


def trace_keys(
    blocks: Sequence[int], prompt_tokens: int, block_tokens: int, *, trace_block_tokens: int = TRACE_BLOCK_TOKENS
) -> tuple[int, ...]:
    """Returns the keys of the full engine blocks, equal where all ids up to there are equal.

    trace_block_tokens: the tokens of a prompt that one id names.

    Raises BadInput if engine blocks cross the boundaries of trace blocks.
    """
    each, rest = divmod(trace_block_tokens, block_tokens)
    if rest:
        raise BadInput(
            f"engine blocks of {block_tokens} tokens do not divide trace blocks of {trace_block_tokens}",
            field="block_tokens",
        )
    key, keys = 0, []
    for index in range(min(prompt_tokens // block_tokens, len(blocks) * each)):
        key = xxh3_64_intdigest(_id_bytes(blocks[index // each]), key)
        keys.append(key)
    return tuple(keys)


def _block_ids_between(named: Sequence[bytes], at: int, end: int, size: int) -> bytes:
    return b"".join(named[at // size : -(-end // size)])


def _id_bytes(block: int) -> bytes:
    return (block & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
