"""Deterministic tokens at temperature 0: each follows from all tokens before it.

An answer that is cut anywhere and sent back as the end of a prompt continues unchanged, on any
engine with the same seed. That makes stream resumption testable. A token is drawn from the key of
the last full block, which stands for all blocks before, and the tokens behind it. One draw in 173
ends the answer.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from fairlead_sim.engine.block_pool import chain_key
from fairlead_sim.engine.tokenizer import Tokenizer

_END_ODDS = 173
MAX_GREEDY_TOKENS = 2_000


@dataclass(frozen=True, slots=True)
class GreedyDecoder:
    """The greedy decoding of an engine. Engines with equal values give equal answers."""

    tokenizer: Tokenizer
    block_tokens: int
    seed: int

    def decode(self, key: int, rest: Sequence[int], count: int, min_tokens: int | None) -> tuple[list[int], bool]:
        """Returns up to ``count`` tokens behind a prompt, and whether the answer ends naturally.

        - key, rest: the key of the prompt's last full block, and the tokens behind it.
        - min_tokens: the answer may end naturally after these, and does so after
          ``MAX_GREEDY_TOKENS``. None: it never does.
        """
        tail = array("I", rest)
        generated: list[int] = []
        max_tokens = count if min_tokens is None else min(count, MAX_GREEDY_TOKENS)
        while len(generated) < max_tokens:
            hashed = xxh3_64_intdigest(tail.tobytes(), key ^ self.seed)
            if min_tokens is not None and len(generated) > min_tokens and (hashed >> 16) % _END_ODDS == 0:
                return generated, True
            token = self.tokenizer.word_token(hashed & 0xFFFF)
            generated.append(token)
            tail.append(token)
            if len(tail) == self.block_tokens:
                key, tail = chain_key(key, tail), array("I")
        return generated, len(generated) < count
