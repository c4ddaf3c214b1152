"""Deterministic tokens at temperature 0: each follows from all tokens before it.

An answer that is cut anywhere and sent back as the end of a prompt continues unchanged, on any
engine with the same seed. That makes stream resumption testable. A token is drawn from the key of
the last full block, which stands for all blocks before, and the tokens behind it. One draw in 173
ends the answer.
"""

from array import array
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from fairlead_sim.engine.block_pool import chain_key
from fairlead_sim.engine.tokenizer import Tokenizer

_END_ODDS = 173
MAX_GREEDY_TOKENS = 2_000


def continue_greedily(
    tokenizer: Tokenizer,
    keys: Sequence[int],
    rest: Sequence[int],
    count: int,
    *,
    block_tokens: int,
    root: int,
    seed: int,
    min_tokens: int | None = None,
) -> tuple[list[int], bool]:
    """Returns up to ``count`` tokens behind a prompt, and whether they end by themselves.

    - keys, rest: the full blocks of the prompt, and the tokens behind them.
    - min_tokens: the answer may end by itself after these; None: it does not.
    """
    key = keys[-1] if keys else root
    tail = array("I", rest)
    generated: list[int] = []
    max_tokens = count if min_tokens is None else min(count, MAX_GREEDY_TOKENS)
    while len(generated) < max_tokens:
        hashed = xxh3_64_intdigest(tail.tobytes(), key ^ seed)
        if min_tokens is not None and len(generated) > min_tokens and (hashed >> 16) % _END_ODDS == 0:
            return generated, True
        token = tokenizer.word_token(hashed & 0xFFFF)
        generated.append(token)
        tail.append(token)
        if len(tail) == block_tokens:
            key, tail = chain_key(key, tail), array("I")
    return generated, len(generated) < count
