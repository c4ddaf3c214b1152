"""Counted misses: how many requests missed their targets, from histograms of latency.

A target is rarely an edge of the histograms. Edges of vLLM are 1, 2.5 and 5 s, and usual targets
are 2 s and 3 s. Between two edges the share of late requests is taken to fall exponentially.

Why: waiting times fall off steeply there. An even spread would show two to seven times the true
number of misses, and replicas would be kept for nothing.

Source: over a day of code completion, an even spread showed 0.68 % of misses instead of 0.13 %.
"""

from dataclasses import dataclass, field

_COUNT_OF_NONE = 0.5
"""The count that stands for no request beyond an edge: none of 100 says less than none of a
million."""


@dataclass(frozen=True, slots=True)
class CountsAroundTarget:
    """Counts of a histogram around a latency target that lies between two of its edges.

    beyond_lower, beyond_upper: counts later than the edge below and above the target.
    judged: all counts, on time or not.
    position: of the target between the edges, 0..1.
    """

    beyond_lower: float = 0.0
    beyond_upper: float = 0.0
    judged: float = 0.0
    position: float = 0.0

    def plus(self, keep: float, new: "CountsAroundTarget") -> "CountsAroundTarget":
        """Returns the sum of the new counts and of these, weighted by `keep` (0..1)."""
        return CountsAroundTarget(
            self.beyond_lower * keep + new.beyond_lower,
            self.beyond_upper * keep + new.beyond_upper,
            self.judged * keep + new.judged,
            max(self.position, new.position),
        )

    @property
    def missed(self) -> float:
        """The counts later than the target."""
        late, position = self.beyond_lower, self.position
        if position > 0.0 and late > 0.0:
            upper = max(self.beyond_upper, _COUNT_OF_NONE)
            late = (
                late * (upper / late) ** position
                if upper < late
                else self.beyond_upper + (late - self.beyond_upper) * (1.0 - position)
            )
        return min(self.judged, late)


def counts_around(counts: tuple[float, ...], bounds: tuple[float, ...], target: float | None) -> CountsAroundTarget:
    """Returns the counts of a histogram around `target`.

    The last bucket has no upper edge: all of its requests miss.
    """
    total = sum(counts)
    if target is None or total <= 0.0 or len(counts) != len(bounds) + 1:
        return CountsAroundTarget()
    lower = 0.0
    left = total
    for count, upper in zip(counts, bounds, strict=False):
        if lower >= target - 1e-9:
            break
        if upper > target + 1e-9:
            return CountsAroundTarget(left, left - count, total, (target - lower) / (upper - lower))
        left -= count
        lower = upper
    return CountsAroundTarget(left, left, total)


@dataclass(frozen=True, slots=True)
class CountedMisses:
    """Requests that missed a target, over a tick or as decaying sums.

    requests: all that were judged, on time or not.
    first_tokens, gaps: counts around the TTFT target, and around the TPOT target if the histogram
        counts answers.
    abandoned: requests whose clients gave up.
    slow: answers on engines whose mean gap was beyond the TPOT target, if no histogram counts
        answers.
    """

    requests: float = 0.0
    first_tokens: CountsAroundTarget = field(default_factory=CountsAroundTarget)
    gaps: CountsAroundTarget = field(default_factory=CountsAroundTarget)
    abandoned: float = 0.0
    slow: float = 0.0

    def plus(self, keep: float, new: "CountedMisses") -> "CountedMisses":
        """Returns the sum of the new counts and of these, weighted by `keep` (0..1)."""
        return CountedMisses(
            self.requests * keep + new.requests,
            self.first_tokens.plus(keep, new.first_tokens),
            self.gaps.plus(keep, new.gaps),
            self.abandoned * keep + new.abandoned,
            self.slow * keep + new.slow,
        )

    @property
    def late_first_tokens(self) -> float:
        return self.first_tokens.missed + self.abandoned

    @property
    def slow_answers(self) -> float:
        return self.gaps.missed + self.slow

    @property
    def missed(self) -> float:
        return min(self.requests, self.late_first_tokens + self.slow_answers)
