"""Outcomes → the numbers of a report. Pure: seconds come in as they shall go out."""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fairlead.fleet.model import SloTargets
from fairlead_cli.replay.client.replay_result import ReplayResult
from fairlead_sim.fleet.results import quantile

QUANTILES = (("p50", 0.50), ("p90", 0.90), ("p99", 0.99))


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and quantiles of some seconds; None where there was nothing to measure."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None

    def to_json(self) -> dict[str, float | None]:
        """As it stands in report.json."""
        return {"mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99}


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """One policy's run. Shares are 0..1; ``load_cov`` is None when nothing was computed anywhere."""

    requests: int
    errors: int
    ttft_seconds: Distribution
    itl_seconds: Distribution
    within_objective: float | None
    cached_token_share: float | None
    load_cov: float | None

    def to_json(self) -> dict[str, Any]:
        """The inner object of report.json."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "ttft_seconds": self.ttft_seconds.to_json(),
            "itl_seconds": self.itl_seconds.to_json(),
            "within_objective": self.within_objective,
            "cached_token_share": self.cached_token_share,
            "load_cov": self.load_cov,
        }


def summarize(outcomes: Sequence[ReplayResult], *, objectives: SloTargets, instances: int) -> PolicySummary:
    """Every outcome counts. ``instances`` is how many there were, those that got nothing included."""
    return PolicySummary(
        requests=len(outcomes),
        errors=sum(outcome.error is not None for outcome in outcomes),
        ttft_seconds=summarize_values(outcome.ttft_seconds for outcome in outcomes if outcome.ttft_seconds is not None),
        itl_seconds=summarize_values(gap for outcome in outcomes for gap in outcome.gaps),
        within_objective=_ratio(sum(is_within_slo(outcome, objectives) for outcome in outcomes), len(outcomes)),
        cached_token_share=_ratio(
            sum(outcome.cached_tokens or 0 for outcome in outcomes),
            sum(outcome.prompt_tokens for outcome in outcomes if outcome.cached_tokens is not None),
        ),
        load_cov=_load_cov(computed_tokens(outcomes), instances),
    )


def is_within_slo(outcome: ReplayResult, objectives: SloTargets) -> bool:
    """Complete, the first token in time, and the mean gap small enough (an answer of one token has none)."""
    if outcome.error is not None or outcome.ttft_seconds is None:
        return False
    limit = objectives.ttft_limit_seconds(outcome.prompt_tokens)
    if limit is not None and outcome.ttft_seconds > limit:
        return False
    mean = outcome.itl_mean_seconds
    return objectives.itl_seconds is None or mean is None or mean <= objectives.itl_seconds


def computed_tokens(outcomes: Iterable[ReplayResult]) -> Mapping[str, int]:
    """Prompt tokens that each instance had to compute because it did not hold them."""
    computed: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.instance is not None and outcome.cached_tokens is not None:
            new = outcome.prompt_tokens - outcome.cached_tokens
            computed[outcome.instance] = computed.get(outcome.instance, 0) + new
    return computed


def summarize_values(values: Iterable[float]) -> Distribution:
    """Mean and quantiles (linear between the two nearest values)."""
    ordered = sorted(values)
    if not ordered:
        return Distribution(None, None, None, None)
    found = {name: quantile(ordered, share) for name, share in QUANTILES}
    return Distribution(mean=math.fsum(ordered) / len(ordered), **found)


def scale_times(outcomes: Iterable[ReplayResult], speed: float) -> list[ReplayResult]:
    """The same outcomes with every second times ``speed``: wall seconds → simulated seconds."""
    return [
        replace(
            outcome,
            due_seconds=outcome.due_seconds * speed,
            ttft_seconds=None if outcome.ttft_seconds is None else outcome.ttft_seconds * speed,
            gaps=array("d", (gap * speed for gap in outcome.gaps)),
            finished_seconds=None if outcome.finished_seconds is None else outcome.finished_seconds * speed,
            late_seconds=outcome.late_seconds * speed,
        )
        for outcome in outcomes
    ]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _load_cov(computed: Mapping[str, int], instances: int) -> float | None:
    count = max(instances, len(computed))
    total = sum(computed.values())
    if not total:
        return None
    mean = total / count
    squares = sum((value - mean) ** 2 for value in computed.values()) + (count - len(computed)) * mean**2
    return math.sqrt(squares / count) / mean
