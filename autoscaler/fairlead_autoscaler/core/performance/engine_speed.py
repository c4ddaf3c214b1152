"""Engine speed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fairlead_autoscaler.core.performance.capacity import StepModel
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals.validation import TokenGapSample
from fairlead_autoscaler.core.types import PoolSpec


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Decaying sums of seconds between tokens: as seen, and as the profile says; and the same of the last tick alone, where it was
    far from them."""

    seen: float = 0.0
    expected: float = 0.0
    odd_seen: float = 0.0
    odd_expected: float = 0.0

    def slowdown(self, settings: ScalingSettings) -> float:
        """How many times as long as its profile says an engine takes; 1 until something was seen."""
        if self.expected <= 1.0:
            return 1.0
        return min(settings.speed_most, max(settings.speed_least, self.seen / self.expected))


def update_engine_speed(
    before: EngineSpeed,
    gap_samples: Sequence[TokenGapSample],
    facts: PoolSpec,
    seconds: float,
    settings: ScalingSettings,
) -> EngineSpeed:
    """``before`` with what one tick of ``seconds`` showed. Each replica is compared with what it had to do itself: where some have
    just begun and others work off a queue, what they do on the mean none of them does."""
    if facts.profile is None or seconds <= 0.0:
        return before
    step = StepModel.from_profile(facts.profile)
    now_seen = now_expected = 0.0
    for pace in gap_samples:
        if pace.generated_tokens < 1.0 or pace.itl_seconds <= 0.0:
            continue
        now_seen += pace.itl_seconds
        now_expected += pace.generated_tokens * (
            step.base_seconds
            + step.sequence_seconds * pace.itl_seconds / seconds
            + step.resident_token_seconds * pace.resident_tokens
        )
        now_expected += step.prompt_token_seconds * pace.prompt_tokens / seconds * pace.itl_seconds
    if now_expected <= 0.0:
        return before
    factor, odd = before.seen / max(before.expected, 1e-9), now_seen / now_expected
    if before.expected > 1.0 and abs(odd / factor - 1.0) > settings.speed_odd:
        if before.odd_expected and (odd - factor) * (before.odd_seen / before.odd_expected - factor) > 0.0:
            # Two ticks in a row that are off to the same side: it is another engine now.
            return EngineSpeed(before.odd_seen + now_seen, before.odd_expected + now_expected)
        return replace(before, odd_seen=now_seen, odd_expected=now_expected)
    keep = math.exp(-seconds / settings.speed_seconds)
    return EngineSpeed(before.seen * keep + now_seen, before.expected * keep + now_expected)
