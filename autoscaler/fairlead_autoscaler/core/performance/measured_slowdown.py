"""Measured speed of engines, as a factor on their profile.

The step model predicts the gaps between tokens from the load of each engine. That load is the mean
of running sequences (gap seconds per second), resident tokens, and prompt tokens per step. The
slowdown of the engine is the ratio of the measured gaps to the predicted ones. Its mean over the
last 45 seconds scales every coefficient of the profile. So an engine that becomes 35 % slower is
noticed within two minutes.

Why each replica by itself: means over a pool describe no replica of it. With them, replicas that
worked off a queue next to new ones seemed up to three times as slow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from fairlead_autoscaler.core.performance.step_model import StepModel
from fairlead_autoscaler.core.signals.validation import TokenGapSample
from fairlead_autoscaler.core.types import PoolSpec

SPEED_SECONDS: Final = 20.0
"""Memory of the measured speed."""
ODD_SLOWDOWN: Final = 0.12
"""A ratio that differs from the mean by more counts only if the next one does too."""
MIN_SLOWDOWN: Final = 0.5
MAX_SLOWDOWN: Final = 3.0


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Decaying sums of gap seconds: as measured, and as the profile predicts.

    odd_seen, odd_expected: gap seconds of the last tick if their ratio was far from that of the
        sums, else 0.
    """

    seen: float = 0.0
    expected: float = 0.0
    odd_seen: float = 0.0
    odd_expected: float = 0.0

    def slowdown(self) -> float:
        """Returns how many times as long as its profile an engine takes; 1 without measurements."""
        if self.expected <= 1.0:
            return 1.0
        return min(MAX_SLOWDOWN, max(MIN_SLOWDOWN, self.seen / self.expected))


def update_engine_speed(
    before: EngineSpeed,
    samples: Sequence[TokenGapSample],
    pool: PoolSpec,
    seconds: float,
) -> EngineSpeed:
    """Returns the speed after one tick of `seconds`.

    A tick far from the sums counts only if the next one deviates in the same direction.
    """
    if pool.profile is None or seconds <= 0.0:
        return before
    step = StepModel.from_profile(pool.profile)
    measured = predicted = 0.0
    for sample in samples:
        if sample.generated_tokens < 1.0 or sample.itl_seconds <= 0.0:
            continue
        measured += sample.itl_seconds
        predicted += sample.generated_tokens * (
            step.base_seconds
            + step.sequence_seconds * sample.itl_seconds / seconds
            + step.resident_token_seconds * sample.resident_tokens
        )
        predicted += step.prompt_token_seconds * sample.prompt_tokens / seconds * sample.itl_seconds
    if predicted <= 0.0:
        return before
    factor, odd = before.seen / max(before.expected, 1e-9), measured / predicted
    if before.expected > 1.0 and abs(odd / factor - 1.0) > ODD_SLOWDOWN:
        if before.odd_expected and (odd - factor) * (before.odd_seen / before.odd_expected - factor) > 0.0:
            # Two consecutive ticks differ in the same direction: the engine has changed.
            return EngineSpeed(before.odd_seen + measured, before.odd_expected + predicted)
        return replace(before, odd_seen=measured, odd_expected=predicted)
    keep = math.exp(-seconds / SPEED_SECONDS)
    return EngineSpeed(before.seen * keep + measured, before.expected * keep + predicted)
