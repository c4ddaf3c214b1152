"""Step costs of the engines, start-up times, and the seeds of the judgement."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairlead_bench.judging_seeds import judging_seeds_of


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """The cost of one step in seconds, and the limits of an engine.

    A step costs ``base`` and a part for each sequence, resident token and prompt token.
    chunk: prompt tokens of one step at most
    kv_tokens: tokens that the memory holds; a request reserves its prompt and its answer
    """

    base: float
    per_seq: float
    per_kv_token: float
    per_prompt_token: float
    chunk: int
    max_seqs: int
    kv_tokens: int

    def described(self) -> Mapping[str, float]:
        """Returns the profile as the seam's ``profile``."""
        return {
            "step_base": self.base,
            "step_per_seq": self.per_seq,
            "step_per_kv_token": self.per_kv_token,
            "step_per_prompt_token": self.per_prompt_token,
            "chunk": self.chunk,
        }


SMALL = EngineProfile(0.028, 1e-4, 0.22e-6, 0.33e-3, 512, 64, 40_000)
"""An 8B model on a GPU like the A10G."""
LARGE = EngineProfile(0.012, 40e-6, 87e-9, 90e-6, 1024, 256, 400_000)
"""An 8B model on a GPU like the A100."""

STARTUP_P50, STARTUP_P90 = 120.0, 254.4


def startup_seconds(draw: float) -> float:
    """Returns the start-up time for a uniform draw."""
    return 60.0 + 240.0 * draw * draw


def startup_times(seed: int, pool: str, count: int) -> Sequence[float]:
    """Returns the start-up times of a pool's orders, in their sequence."""
    random_source = random.Random(f"startup/{pool}/{seed}")
    return [startup_seconds(random_source.random()) for _ in range(count)]


def judging_seeds() -> list[int]:
    """Returns the seeds of the judgement, on which nothing is tuned."""
    return judging_seeds_of("outside plant")
