"""Error budget: the share of requests that may miss next, from what is left of those that may.

The SLO lets a share of the requests of a period miss. What is left of it is spent over the next
hour:

    goal = usual · allowed + left / requests of an hour

within fixed multiples of the allowed share. So a day has more to spend after good hours, and less
after a failure. What whole replicas save above the demand is spent by the next rounding.

The usual goal is above the allowed share: predictions are rather too high, and replicas are whole.
Where they are not too high, the budget is overspent until the goal has fallen to the allowed share.
By then (usual - 1) times the misses of an hour are overspent, and it stays at that.
"""

import math
from dataclasses import dataclass, field

from fairlead_autoscaler.core.performance.counted_misses import CountedMisses
from fairlead_autoscaler.core.performance.miss_corrections import MissCorrections, MissEvidence
from fairlead_autoscaler.core.performance.missed_share import MissedShares
from fairlead_autoscaler.core.settings import ScalingSettings

DAY_SECONDS = 86_400.0
"""The usual period."""
_MIN_REQUESTS = 20.0
"""Requests on which a share must rest."""


@dataclass(frozen=True, slots=True)
class ErrorBudget:
    """Missed requests of the period, and what they teach about the predictions.

    hour_requests: requests of about the last hour.
    """

    period: CountedMisses = field(default_factory=CountedMisses)
    hour_requests: float = 0.0
    evidence: MissEvidence = field(default_factory=MissEvidence)

    def corrections(self, settings: ScalingSettings) -> MissCorrections:
        return self.evidence.corrections(settings)

    @property
    def missed_share(self) -> float | None:
        """The share of the period's requests that missed; None: there was no request."""
        return self.period.missed / self.period.requests if self.period.requests > 0.0 else None

    def left(self, allowed: float) -> float:
        return allowed * self.period.requests - self.period.missed

    def goal(self, allowed: float, settings: ScalingSettings) -> float:
        """Returns the share of requests that may miss next.

        allowed: the share that may miss by the SLO.
        """
        goal = settings.goal_usual
        if self.hour_requests >= _MIN_REQUESTS:
            goal += self.left(allowed) / self.hour_requests / allowed
        return allowed * min(settings.max_goal, max(settings.min_goal, goal))


@dataclass(frozen=True, slots=True)
class BudgetSample:
    """Missed requests of one tick.

    predicted: what the step model expected to miss.
    is_representative: enough replicas were ready, so the tick teaches something.
    is_excused: there were none, or the core had just begun: no size of the group could have helped.
    """

    counted: CountedMisses
    predicted: MissedShares
    seconds: float
    is_representative: bool
    is_excused: bool


def update_error_budget(
    before: ErrorBudget, sample: BudgetSample, settings: ScalingSettings, period_seconds: float = DAY_SECONDS
) -> ErrorBudget:
    """Returns the budget after one tick.

    period_seconds: time over which the target holds; older requests fade.

    A tick that is not representative teaches nothing but counts for the period, unless it is
    excused.
    """
    counted = CountedMisses() if sample.is_excused else sample.counted
    evidence = before.evidence
    if sample.is_representative:
        evidence = evidence.plus(counted, sample.predicted, sample.seconds, settings)
    return ErrorBudget(
        before.period.plus(math.exp(-sample.seconds / period_seconds), counted),
        before.hour_requests * math.exp(-sample.seconds / settings.budget_spend_seconds) + counted.requests,
        evidence,
    )
