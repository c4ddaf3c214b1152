"""Answers from documents: each request is one system block, one to three of 2,000 documents and a question, and stands alone.

Documents are of 2 to 12 blocks, popular by Zipf 0.9, and stand in the prompt in the order of their popularity, so that pairs of
popular ones come up as a common prefix. Arrivals are by chance.
"""

import random
from collections.abc import Sequence
from typing import Final

from fairlead_sim.traces import MAX_PROMPT_TOKENS, TRACE_BLOCK_TOKENS, TraceRequest
from fairlead_sim.traffic.prompt import HOUR_REQUESTS, HOUR_SECONDS, Blocks, Collected, Prompt, Zipf, arrivals

DOCUMENTS: Final = 2_000
EXPONENT: Final = 0.9
QUESTION_TOKENS: Final = (20, 400)
OUTPUT_TOKENS: Final = (100, 400)
_BLOCKS_MOST: Final = (MAX_PROMPT_TOKENS - QUESTION_TOKENS[1]) // TRACE_BLOCK_TOKENS


def rag(requests: int, *, seed: int) -> list[TraceRequest]:
    """The first so many requests; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"rag {seed}"), Blocks(), Collected(requests)
    system, library = fresh.run(1), Library(fresh, random_, DOCUMENTS)
    rate = HOUR_REQUESTS / HOUR_SECONDS
    for number, at in enumerate(arrivals(random_, lambda _: rate, rate, into.until)):
        ask(into, random_, at, fresh, system, library, f"q{number}")
    return into.first()


class Library:
    """Documents by popularity, the most popular first."""

    def __init__(self, fresh: Blocks, random_: random.Random, documents: int) -> None:
        self._documents = [fresh.run(random_.randint(2, 12)) for _ in range(documents)]
        self._popular = Zipf(documents, EXPONENT)

    def found(self, random_: random.Random, room: int) -> tuple[int, ...]:
        """The blocks of one to three different documents that fit ``room`` blocks together, the more popular before."""
        wanted = random_.randint(1, 3)
        ranks = sorted({self._popular.draw(random_) for _ in range(wanted)})
        blocks: tuple[int, ...] = ()
        for rank in ranks:
            if len(blocks) + len(self._documents[rank]) <= room:
                blocks += self._documents[rank]
        return blocks


def ask(
    into: Collected,
    random_: random.Random,
    at: float,
    fresh: Blocks,
    system: Sequence[int],
    library: Library,
    session: str,
    tenant: str | None = None,
) -> None:
    """One request behind the ``system`` blocks."""
    found = library.found(random_, _BLOCKS_MOST - len(system))
    prompt = Prompt(fresh, (*system, *found), random_.randint(*QUESTION_TOKENS))
    into.add(at, prompt, random_.randint(*OUTPUT_TOKENS), session, tenant)
