"""The error budget: what the objectives saw, and how much room it leaves.

The objective leaves a share of requests that may miss. The share that did, over minutes and over an hour, trims the margin on
capacity between 0.85 and 1.4: the same constants then serve engines whose knee lies elsewhere than the model says. While more is
asked than is ready nothing is learned: what misses then says that starting is slow, not that the knee lies elsewhere. It still
counts for the hour: a budget that is overspent takes back what was trimmed off.

**Between the edges of a histogram.** An objective rarely is an edge (vLLM's are 1, 2.5 and 5 s, objectives 2 and 3), and waiting
times fall off steeply there. Of requests later than an edge of the bucket the share that is later than the objective is taken to
fall as an exponential does, from what lies beyond the lower edge to what lies beyond the upper one. Evenly spread, two to seven
times as many would miss as did (a day of code completion: 0.68 % instead of 0.13 %), and the margin would keep for nothing what
nobody misses."""

import math
from dataclasses import dataclass, field, replace

from fairlead_autoscaler.core.settings import ScalingSettings

_MIN_REQUESTS = 20.0
"""Requests that a share must rest on."""
_COUNT_OF_NONE = 0.5
"""What is taken for none beyond an edge: none of a hundred seen says less than none of a million."""


@dataclass(frozen=True, slots=True)
class MissedRequests:
    """Of ``judged`` requests those ``beyond_lower`` and ``beyond_upper`` the edges around the objective, and those that missed it for
    another reason (``otherwise``)."""

    beyond_lower: float = 0.0
    beyond_upper: float = 0.0
    otherwise: float = 0.0
    judged: float = 0.0

    def plus(self, keep: float, new: "MissedRequests") -> "MissedRequests":
        """Of these the share ``keep``, and what was seen now."""
        return MissedRequests(
            self.beyond_lower * keep + new.beyond_lower,
            self.beyond_upper * keep + new.beyond_upper,
            self.otherwise * keep + new.otherwise,
            self.judged * keep + new.judged,
        )

    def missed_count(self, place: float) -> float:
        """How many missed an objective that lies at ``place`` (0..1) between its edges."""
        late = self.beyond_lower
        if place > 0.0 and late > 0.0:
            upper = max(self.beyond_upper, _COUNT_OF_NONE)
            late = (
                late * (upper / late) ** place
                if upper < late
                else self.beyond_upper + (late - self.beyond_upper) * (1.0 - place)
            )
        return min(self.judged, late + self.otherwise)


def count_missed(
    counts: tuple[float, ...], bounds: tuple[float, ...], objective: float | None
) -> tuple[MissedRequests, float]:
    """What a histogram says of ``objective``, and where that lies between its edges (0 at the lower one). Of the last bucket, which
    has no end, all are beyond."""
    total = sum(counts)
    if objective is None or total <= 0.0 or len(counts) != len(bounds) + 1:
        return MissedRequests(), 0.0
    lower = 0.0
    left = total
    for count, upper in zip(counts, bounds, strict=False):
        if lower >= objective - 1e-9:
            break
        if upper > objective + 1e-9:
            return MissedRequests(left, left - count, 0.0, total), (objective - lower) / (upper - lower)
        left -= count
        lower = upper
    return MissedRequests(left, left, 0.0, total), 0.0


@dataclass(frozen=True, slots=True)
class ErrorBudget:
    """What was seen over minutes and over an hour, and the margin that follows."""

    fast: MissedRequests = field(default_factory=MissedRequests)
    slow: MissedRequests = field(default_factory=MissedRequests)
    margin: float = 1.0

    def spare_replicas(self, settings: ScalingSettings) -> float:
        """The part of a replica that need not be rounded up: where the margin has sunk for so long that rounding is what keeps it
        from sinking further."""
        low = (settings.spare_margin - self.margin) / max(1e-9, settings.spare_margin - settings.margin_least)
        return settings.spare_most * min(1.0, max(0.0, low))


def update_error_budget(
    before: ErrorBudget,
    missed: MissedRequests,
    position: float,
    seconds: float,
    allowed: float,
    learn: bool,
    settings: ScalingSettings,
) -> ErrorBudget:
    """``before`` after ``seconds`` in which that was seen of an objective at ``place``, where the share ``allowed`` may miss. What
    is not to be learnt from still counts for the hour: what is spent is spent."""
    fast, slow = (math.exp(-seconds / each) for each in (settings.budget_fast_seconds, settings.budget_slow_seconds))
    after = ErrorBudget(
        before.fast.plus(fast, missed if learn else MissedRequests()), before.slow.plus(slow, missed), before.margin
    )
    if not learn or after.fast.judged < _MIN_REQUESTS:
        return after
    burn = after.fast.missed_count(position) / after.fast.judged / allowed
    burn_slow = after.slow.missed_count(position) / after.slow.judged / allowed
    margin = before.margin
    if burn > 1.0:
        margin += min(4.0, burn - 1.0) * settings.margin_up_per_second * seconds
    elif burn_slow > 1.0 and margin < 1.0:
        margin += min(4.0, burn_slow - 1.0) * settings.margin_up_per_second * seconds
    elif burn_slow < settings.margin_spend and burn < settings.margin_spend:
        margin -= settings.margin_down_per_second * seconds
    return replace(after, margin=min(settings.margin_most, max(settings.margin_least, margin)))
