"""Miss corrections: factors on predicted misses, learned from those that were counted.

The step model knows engines, not gateways. Whether a gateway lets replicas share their queues well
shows only in what is missed. So late first tokens and slow answers each get one factor

    factor = (prior + counted) / (prior + predicted)

over the last half hour. It is the mean of a Poisson rate with a gamma prior, and stays near 1 until
the evidence is worth more than the prior. Requests that miss come in clumps, so the prior is worth
ten of them. Where little is predicted, as on the safe side of a cliff, little is learned. Nothing
missed then says only that the cliff was not reached.

Ticks with too few replicas teach nothing: what is missed then shows that starts are slow.
"""

import math
from dataclasses import dataclass, field

from fairlead_autoscaler.core.performance.counted_misses import CountedMisses
from fairlead_autoscaler.core.performance.missed_share import MissedShares
from fairlead_autoscaler.core.settings import ScalingSettings

_MIN_FACTOR, _MAX_FACTOR = 0.1, 10.0


@dataclass(frozen=True, slots=True)
class MissCorrections:
    """Factors on the odds of a miss: of first tokens (also by batch and memory) and of gaps."""

    first_tokens: float = 1.0
    gaps: float = 1.0


NO_CORRECTIONS = MissCorrections()


@dataclass(frozen=True, slots=True)
class MissEvidence:
    """Decaying sums of counted and of predicted misses."""

    counted: CountedMisses = field(default_factory=CountedMisses)
    predicted_first_tokens: float = 0.0
    predicted_gaps: float = 0.0

    def plus(
        self, counted: CountedMisses, predicted: MissedShares, seconds: float, settings: ScalingSettings
    ) -> "MissEvidence":
        """Returns the evidence with that of one tick of `seconds`."""
        keep = math.exp(-seconds / settings.evidence_seconds)
        first_tokens = min(1.0, predicted.prompts + predicted.batch + predicted.memory)
        return MissEvidence(
            self.counted.plus(keep, counted),
            self.predicted_first_tokens * keep + counted.requests * first_tokens,
            self.predicted_gaps * keep + counted.requests * predicted.gaps,
        )

    def corrections(self, settings: ScalingSettings) -> MissCorrections:
        """Returns the factors that the evidence supports."""
        prior = settings.evidence_prior
        counted = (self.counted.late_first_tokens, self.counted.slow_answers)
        predicted = (self.predicted_first_tokens, self.predicted_gaps)
        factors = (
            min(_MAX_FACTOR, max(_MIN_FACTOR, (prior + measured) / (prior + expected)))
            for measured, expected in zip(counted, predicted, strict=True)
        )
        return MissCorrections(*factors)


def scale_odds(share: float, factor: float) -> float:
    return share if share >= 1.0 else factor * share / (1.0 - share + factor * share)
