"""A chat session: some turns, a person's pauses between them, and now and then a long pasted
text.
"""

import random
from typing import Final

from fairlead_sim.workload.generators.building_blocks import GrowingPrompt, TrafficBuilder, lognormal

TURNS: Final = 3.5
PAUSE_SECONDS: Final = 25.0
PAUSE_SIGMA: Final = 0.8
ASKED_TOKENS: Final = 900
ASKED_SIGMA: Final = 1.1
ANSWERED_TOKENS: Final = 250
ANSWERED_SIGMA: Final = 0.7
TOKEN_SECONDS: Final = 0.012
"""Seconds per token of the answer that a person waits for before reading."""


def add_chat_session(
    into: TrafficBuilder,
    random_: random.Random,
    at: float,
    prompt: GrowingPrompt,
    session: str,
    tenant: str | None = None,
) -> None:
    """Adds one session from ``at`` on that continues ``prompt``; ``TURNS`` is its mean number of
    turns.
    """
    while True:
        prompt.grow(int(lognormal(random_, ASKED_TOKENS, ASKED_SIGMA, minimum=20, maximum=16_000)))
        output = int(lognormal(random_, ANSWERED_TOKENS, ANSWERED_SIGMA, maximum=2_000))
        if not into.add(at, prompt, output, session, tenant) or random_.random() < 1 / TURNS:
            return
        at += output * TOKEN_SECONDS + lognormal(random_, PAUSE_SECONDS, PAUSE_SIGMA)
        prompt.grow(output)
