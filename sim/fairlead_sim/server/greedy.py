"""What an engine says at temperature 0: each token follows from everything before it, and from nothing else.

So an answer that is cut anywhere and sent back as the end of a prompt goes on as if nothing had happened, on any engine
with the same seed: what makes continuing a broken answer testable. A token is drawn from the key of the last full block
(which stands for all blocks before it) and the tokens behind that; one draw in a hundred and seventy ends the answer.
"""

from array import array
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from fairlead_sim.blocks import chained
from fairlead_sim.tokenizer import Tokenizer

_ENDS_ONE_IN = 173
LONGEST = 2_000


def go_on(
    tokenizer: Tokenizer,
    keys: Sequence[int],
    rest: Sequence[int],
    count: int,
    *,
    block_tokens: int,
    root: int,
    seed: int,
    least: int | None = None,
) -> tuple[list[int], bool]:
    """Up to ``count`` tokens behind a prompt of full blocks ``keys`` and ``rest``, and whether they end by themselves,
    which they may after ``least`` tokens; with None they do not."""
    key = keys[-1] if keys else root
    tail = array("I", rest)
    said: list[int] = []
    most = count if least is None else min(count, LONGEST)
    while len(said) < most:
        drawn = xxh3_64_intdigest(tail.tobytes(), key ^ seed)
        if least is not None and len(said) > least and (drawn >> 16) % _ENDS_ONE_IN == 0:
            return said, True
        token = tokenizer.word(drawn & 0xFFFF)
        said.append(token)
        tail.append(token)
        if len(tail) == block_tokens:
            key, tail = chained(key, tail), array("I")
    return said, len(said) < count
