"""Answers from documents: one system block, one to three of 2,000 documents and a question.

Documents have 2 to 12 blocks and a popularity of Zipf 0.9. They are ordered by popularity in the
prompt, so that popular pairs form common prefixes. Requests are independent and arrive at random.
"""

import random
from collections.abc import Sequence
from typing import Final

from fairlead_sim.workload.generators.building_blocks import (
    HOUR_REQUESTS,
    HOUR_SECONDS,
    BlockIds,
    GrowingPrompt,
    TrafficBuilder,
    ZipfDistribution,
    poisson_process,
)
from fairlead_sim.workload.traces import MAX_PROMPT_TOKENS, TRACE_BLOCK_TOKENS, TraceRequest

DOCUMENTS: Final = 2_000
EXPONENT: Final = 0.9
QUESTION_TOKENS: Final = (20, 400)
OUTPUT_TOKENS: Final = (100, 400)
_MAX_BLOCKS: Final = (MAX_PROMPT_TOKENS - QUESTION_TOKENS[1]) // TRACE_BLOCK_TOKENS


def rag_traffic(requests: int, *, seed: int) -> list[TraceRequest]:
    """Returns the first ``requests`` requests, by arrival; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"rag {seed}"), BlockIds(), TrafficBuilder(requests)
    system, library = fresh.take(1), DocumentLibrary(fresh, random_, DOCUMENTS)
    rate = HOUR_REQUESTS / HOUR_SECONDS
    for number, at in enumerate(poisson_process(random_, lambda _: rate, rate, into.until)):
        prompt = rag_prompt(random_, fresh, system, library)
        into.add(at, prompt, random_.randint(*OUTPUT_TOKENS), f"q{number}")
    return into.build()


class DocumentLibrary:
    """Documents by descending popularity."""

    def __init__(self, fresh: BlockIds, random_: random.Random, documents: int) -> None:
        self._documents = [fresh.take(random_.randint(2, 12)) for _ in range(documents)]
        self._popular = ZipfDistribution(documents, EXPONENT)

    def pick_documents(self, random_: random.Random, max_blocks: int) -> tuple[int, ...]:
        """Returns the blocks of one to three documents that fit ``max_blocks``, the more popular
        first.
        """
        count = random_.randint(1, 3)
        ranks = sorted({self._popular.draw(random_) for _ in range(count)})
        blocks: tuple[int, ...] = ()
        for rank in ranks:
            if len(blocks) + len(self._documents[rank]) <= max_blocks:
                blocks += self._documents[rank]
        return blocks


def rag_prompt(
    random_: random.Random, fresh: BlockIds, system: Sequence[int], library: DocumentLibrary
) -> GrowingPrompt:
    """Returns a prompt of the ``system`` blocks, documents and a question."""
    document_blocks = library.pick_documents(random_, _MAX_BLOCKS - len(system))
    return GrowingPrompt(fresh, (*system, *document_blocks), random_.randint(*QUESTION_TOKENS))
