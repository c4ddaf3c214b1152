"""Seeds of benchmarks: those for tuning, and those for judging, on which nothing is tuned.

Why a rule: seeds that a person chooses can be chosen to flatter. Each benchmark
commits them in a file before it is tuned, and runs them once at the end.
"""

import hashlib
from typing import Final

TUNING_SEEDS: Final = (1, 2, 3)
JUDGING_SEED_COUNT: Final = 20
_SEED_BOUND = 1_000_000


def judging_seeds_of(subject: str) -> list[int]:
    """Returns the seeds for judging ``subject``.

    Seed number ``k`` is the first eight hexadecimal digits of the SHA-256 of
    "SUBJECT, judging seed k", modulo one million.
    """
    return [_drawn_seed(f"{subject}, judging seed {number}") for number in range(1, JUDGING_SEED_COUNT + 1)]


def _drawn_seed(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % _SEED_BOUND
