"""The judge of a canary: from what two revisions did in the same time to a verdict. Pure.

A verdict may be computed after every interval. The chance that any of them rolls back a revision
within the tolerances stays below `Tolerances.false_rollback`.

An interval compares both revisions under the same traffic. What affects both, such as a peak of
load, cancels out. Requests of one interval may depend on each other, as the turns of a conversation
do: intervals count, not requests.

TTFT, TPOT and answer length have an *excess* in each interval: what the canary used beyond the
running revision's mean times the tolerance. A t-test that holds at any time says whether the mean
excess is above 0. It mixes over effects of all sizes and needs no variance in advance. Of errors,
each request counts: a mixture of likelihood ratios compares the canary's share with that of the
running revision.

TTFT is judged twice. Once the prompt tokens that had to be computed explain a part of it: a canary
with a cold cache is not slower. And once as it is, with a wider tolerance, since a revision may
have broken the cache.

Source: Lindon, Ham, Tingley and Bojinov, "Anytime-Valid Linear Models and Regression Adjusted
Causal Inference in Randomized Experiments", 2022 (the t-test). Johari, Koomen, Pekelis and Walsh,
"Always Valid Inference: Continuous Monitoring of A/B Tests", Operations Research 70(3), 2022 (the
mixture sequential probability ratio test). Ramdas, Grünwald, Vovk and Shafer, "Game-Theoretic
Statistics and Safe Anytime-Valid Inference", 2023 (evidence that multiplies).
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from math import exp, log, sqrt
from operator import add, sub
from typing import Final

_EFFECT_VARIANCE: Final = 1.0
"""Variance of the effects that are mixed over, in those of an interval."""
_MIN_INTERVALS: Final = 4
_ERROR_RISES: Final = (0.01, 0.02, 0.05, 0.1, 0.3, 0.9)
"""Rises of the error share that are mixed over, as parts of what is left to 1."""
_TESTS: Final = 6
"""Tests that may each cause a rollback; they share the chance of a false one."""
_INCIDENT_ERRORS: Final = 3
"""Errors of the running revision in one interval that count as an incident, which affects both."""
_MAX_SUM: Final = 1e12
_MAX_LOG_TOKENS: Final = 64.0
"""No interval has more requests, tokens or seconds, and no answer so many tokens."""
_ROUNDING: Final = 1e-6
"""Sums of the same seconds in another order differ by less."""
_PRIOR_REQUESTS: Final = 100.0
"""Requests without an error that the running revision is assumed to have had."""


class Measure(StrEnum):
    """A property that is compared between the two revisions."""

    TTFT = "TTFT"
    TPOT = "TPOT"
    ERRORS = "errors"
    ANSWER_LENGTH = "answer length"


class Verdict(StrEnum):
    """The decision about a canary."""

    CONTINUE = "Continue"
    PROMOTE = "Promote"
    ROLLBACK = "Rollback"


@dataclass(frozen=True, slots=True)
class RevisionSums:
    """The requests to instances of one revision: in an interval, or since a gateway started.

    attempts: requests that were sent there, also those that another instance answered then.
    gaps: between the tokens of streams.
    log_tokens: the sum of the logarithms of the tokens of each answer. Why: lengths differ by
        orders of magnitude, and a few long answers would hide the others.
    computed_tokens: of prompts, without those that were cached.
    """

    attempts: int = 0
    errors: int = 0
    first_tokens: int = 0
    ttft_seconds: float = 0.0
    gaps: int = 0
    gap_seconds: float = 0.0
    answers: int = 0
    log_tokens: float = 0.0
    computed_tokens: int = 0

    @property
    def is_possible(self) -> bool:
        """Whether an instance can have had these requests since an earlier reading.

        A number falls if the gateway has restarted.
        """
        numbers = astuple(self)
        is_within = min(numbers) > -_ROUNDING and max(numbers) <= _MAX_SUM
        return is_within and self.log_tokens <= _MAX_LOG_TOKENS * self.answers + _ROUNDING

    def __add__(self, other: "RevisionSums") -> "RevisionSums":
        return RevisionSums(*map(add, astuple(self), astuple(other)))

    def __sub__(self, earlier: "RevisionSums") -> "RevisionSums":
        return RevisionSums(*map(sub, astuple(self), astuple(earlier)))


@dataclass(frozen=True, slots=True)
class RevisionInterval:
    """The requests to both revisions in the same time."""

    running: RevisionSums
    canary: RevisionSums


@dataclass(frozen=True, slots=True)
class Tolerances:
    """The tolerances of the judge. A canary within all of them is not rolled back.

    slower: greatest ratio of the canary's mean to the running revision's, of TPOT, and of TTFT for
        the same number of computed prompt tokens. 1.05: up to 5 % slower.
    ttft: the same of TTFT, whatever was computed.
    length: the same of the answer length; its inverse is the least ratio.
    errors: greatest rise of the error share.
    false_rollback: chance that a canary within the tolerances is ever rolled back.
    min_requests: requests of the canary without which it is not promoted.
    """

    slower: float = 1.05
    ttft: float = 1.5
    length: float = 1.15
    errors: float = 0.003
    false_rollback: float = 0.01
    min_requests: int = 30


@dataclass(frozen=True, slots=True)
class MeasureComparison:
    """The state of one measure.

    change: of the canary against the running revision: a ratio, or a difference of error shares.
    p_value: always valid; at most the chance of such data if the canary is within the tolerance.
    """

    measure: Measure
    running: float
    canary: float
    p_value: float

    def describe(self) -> str:
        """Returns the two numbers as text."""
        if self.measure is Measure.ERRORS:
            return f"errors {self.canary:.1%} instead of {self.running:.1%} of the requests"
        if self.measure is Measure.ANSWER_LENGTH:
            return f"answers of {self.canary:.0f} instead of {self.running:.0f} tokens at the geometric mean"
        times = f"{_format_seconds(self.canary)} instead of {_format_seconds(self.running)} on average"
        return f"{self.measure} {times} ({self.canary / self.running - 1.0:+.0%})"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and its reason.

    missed: the measure that causes a rollback.
    requests: of the canary so far.
    """

    verdict: Verdict
    reason: str
    missed: Measure | None = None
    requests: int = 0
    comparisons: tuple[MeasureComparison, ...] = ()


def judge(intervals: Sequence[RevisionInterval], *, is_complete: bool, rules: Tolerances | None = None) -> Judgement:
    """Returns the decision about a canary after these intervals.

    is_complete: the step has lasted as long as the spec asks.
    """
    rules = rules or Tolerances()
    running, canary = RevisionSums(), RevisionSums()
    for interval in intervals:
        running, canary = running + interval.running, canary + interval.canary
    comparisons = tuple(_compare_measures(intervals, running, canary, rules))
    requests = canary.attempts
    limit = rules.false_rollback / _TESTS
    missed = min(
        (found for found in comparisons if found.p_value <= limit), key=lambda found: found.p_value, default=None
    )
    if missed is not None:
        reason = f"{missed.describe()}, in {requests} requests (p = {missed.p_value:.2g})"
        return Judgement(Verdict.ROLLBACK, reason, missed.measure, requests, comparisons)
    if not is_complete:
        return Judgement(Verdict.CONTINUE, f"no difference found in {requests} requests", None, requests, comparisons)
    if requests < rules.min_requests:
        reason = f"only {requests} requests so far, and {rules.min_requests} are needed"
        return Judgement(Verdict.CONTINUE, reason, None, requests, comparisons)
    return Judgement(Verdict.PROMOTE, f"no difference found in {requests} requests", None, requests, comparisons)


@dataclass(frozen=True, slots=True)
class _ToleratedRatio:
    """A measure with the ratio of means that is still tolerated.

    is_adjusted: for the same tokens to compute.
    """

    measure: Measure
    ratio: float
    is_adjusted: bool = False


def _compare_measures(
    intervals: Sequence[RevisionInterval], running: RevisionSums, canary: RevisionSums, rules: Tolerances
) -> list[MeasureComparison]:
    tolerated_ratios = (
        _ToleratedRatio(Measure.TTFT, rules.slower, is_adjusted=True),
        _ToleratedRatio(Measure.TTFT, rules.ttft),
        _ToleratedRatio(Measure.TPOT, rules.slower),
        _ToleratedRatio(Measure.ANSWER_LENGTH, rules.length),
        _ToleratedRatio(Measure.ANSWER_LENGTH, 1.0 / rules.length),
    )
    comparisons = []
    for tolerated in tolerated_ratios:
        means = _mean_to_report(running, tolerated.measure), _mean_to_report(canary, tolerated.measure)
        if means[0] is not None and means[1] is not None:
            comparisons.append(
                MeasureComparison(tolerated.measure, means[0], means[1], _excess_p_value(intervals, tolerated))
            )
    if running.attempts and canary.attempts:
        shares = running.errors / running.attempts, canary.errors / canary.attempts
        comparisons.append(MeasureComparison(Measure.ERRORS, *shares, _error_p_value(intervals, rules.errors)))
    return comparisons


def _total_and_count(sums: RevisionSums, measure: Measure) -> tuple[float, int]:
    """Returns the total of a measure and the number of what it is the total of."""
    if measure is Measure.TTFT:
        return sums.ttft_seconds, sums.first_tokens
    if measure is Measure.TPOT:
        return sums.gap_seconds, sums.gaps
    return sums.log_tokens, sums.answers


def _mean_to_report(sums: RevisionSums, measure: Measure) -> float | None:
    total, count = _total_and_count(sums, measure)
    if not count or total <= 0.0:
        return None
    return exp(total / count) if measure is Measure.ANSWER_LENGTH else total / count


def _canary_excess(interval: RevisionInterval, tolerated: _ToleratedRatio) -> tuple[int, float, float] | None:
    """Returns the weight of an interval, the canary's excess, and its excess of tokens to compute;
    None without requests of both revisions.
    """
    total, count = _total_and_count(interval.running, tolerated.measure)
    used, number = _total_and_count(interval.canary, tolerated.measure)
    if not count or not number:
        return None
    if tolerated.measure is Measure.ANSWER_LENGTH:
        return number, used - (total / count + log(tolerated.ratio)) * number, 0.0
    excess = used - tolerated.ratio * total / count * number
    if not tolerated.is_adjusted:
        return number, excess, 0.0
    usual = interval.running.computed_tokens / count
    return number, excess, interval.canary.computed_tokens - usual * number


def _excess_p_value(intervals: Sequence[RevisionInterval], tolerated: _ToleratedRatio) -> float:
    """Returns an always-valid p-value of the canary being within the ratio of a test.

    It is the inverse of the largest Bayes factor so far: evidence that was once there does not go
    away. A ratio below 1 is a lower bound.
    """
    regression = _ExcessRegression(-1.0 if tolerated.ratio < 1.0 else 1.0)
    best = 1.0
    for interval in intervals:
        found = _canary_excess(interval, tolerated)
        if found is not None:
            regression.add(*found)
            best = max(best, regression.evidence())
    return 1.0 / best


class _ExcessRegression:
    """The weighted regression of an excess on the number of requests and the excess of computed
    prompt tokens.

    Intervals of more requests have more weight: the variance grows with their number.

    sign: 1 tests for an increase, -1 for a decrease.
    """

    def __init__(self, sign: float) -> None:
        self._sign = sign
        self._count = 0
        self._unit = 0.0
        self._xx = self._xy = self._yy = self._xz = self._yz = self._zz = 0.0

    def add(self, number: int, excess: float, computed: float) -> None:
        """Adds an interval."""
        if self._count < _MIN_INTERVALS:
            self._unit += number / _MIN_INTERVALS
        self._count += 1
        self._xx += number
        self._xy += excess
        self._yy += excess * excess / number
        self._xz += computed
        self._yz += excess * computed / number
        self._zz += computed * computed / number

    def evidence(self) -> float:
        """Returns the Bayes factor of an excess against none; 1 without one, or too early."""
        if self._count < _MIN_INTERVALS:
            return 1.0
        freedom, xx, xy, yy = self._count - 1, self._xx, self._xy, self._yy
        if self._zz > 0.0:
            freedom -= 1
            xx -= self._xz * self._xz / self._zz
            xy -= self._xz * self._yz / self._zz
            yy -= self._yz * self._yz / self._zz
        if xx <= 1e-6 * self._xx or xy * self._sign <= 0.0:
            return 1.0
        explained = xy * xy / xx
        t_squared = freedom * explained / max(yy - explained, 1e-9 * yy)
        growth = 1.0 + xx / self._unit * _EFFECT_VARIANCE
        ratio = (1.0 + t_squared / freedom) / (1.0 + t_squared / (freedom * growth))
        return exp(min(700.0, 0.5 * (freedom + 1) * log(ratio))) / sqrt(growth)


def _error_p_value(intervals: Sequence[RevisionInterval], tolerance: float) -> float:
    """Returns an always-valid p-value of the canary's error share being within the tolerance.

    Each interval is compared with the running revision's share up to then, or in an incident with
    that of the interval.
    """
    evidence = [0.0] * len(_ERROR_RISES)
    best, attempts, errors = 1.0, _PRIOR_REQUESTS, 0.0
    for interval in intervals:
        attempts, errors = attempts + interval.running.attempts, errors + interval.running.errors
        usual = errors / attempts
        if interval.running.errors >= _INCIDENT_ERRORS:
            usual = max(usual, interval.running.errors / interval.running.attempts)
        usual = min(0.99, usual + tolerance)
        failed = interval.canary.errors
        served = max(0, interval.canary.attempts - failed)
        for number, rise in enumerate(_ERROR_RISES):
            share = usual + (1.0 - usual) * rise
            evidence[number] += failed * log(share / usual) + served * log((1.0 - share) / (1.0 - usual))
        mixture = sum(exp(min(700.0, part)) for part in evidence) / len(evidence)
        best = max(best, mixture)
    return 1.0 / best


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{1000.0 * seconds:.3g} ms"
