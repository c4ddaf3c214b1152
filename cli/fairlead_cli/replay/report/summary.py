"""Statistics of replay results. Pure."""

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
    """Mean and quantiles in seconds; None without a value."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None

    def to_json(self) -> dict[str, float | None]:
        """Returns the object of report.json."""
        return {"mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99}


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """Statistics of one run. Shares are 0..1, and None without a request that has the value.

    load_cov: variation of computed tokens between instances; None when nothing was computed.
    """

    requests: int
    errors: int
    ttft_seconds: Distribution
    itl_seconds: Distribution
    within_objective: float | None
    cached_token_share: float | None
    load_cov: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns the object of report.json."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "ttft_seconds": self.ttft_seconds.to_json(),
            "itl_seconds": self.itl_seconds.to_json(),
            "within_objective": self.within_objective,
            "cached_token_share": self.cached_token_share,
            "load_cov": self.load_cov,
        }


def summarize(results: Sequence[ReplayResult], *, objectives: SloTargets, instances: int) -> PolicySummary:
    """Returns statistics of all results. ``instances`` includes those without requests."""
    return PolicySummary(
        requests=len(results),
        errors=sum(result.error is not None for result in results),
        ttft_seconds=summarize_values(result.ttft_seconds for result in results if result.ttft_seconds is not None),
        itl_seconds=summarize_values(gap for result in results for gap in result.gaps),
        within_objective=_ratio(sum(is_within_slo(result, objectives) for result in results), len(results)),
        cached_token_share=_ratio(
            sum(result.cached_tokens or 0 for result in results),
            sum(result.prompt_tokens for result in results if result.cached_tokens is not None),
        ),
        load_cov=_load_cov(computed_tokens(results), instances),
    )


def is_within_slo(result: ReplayResult, objectives: SloTargets) -> bool:
    """Whether the answer is complete and its first token and mean gap are within the SLO."""
    if result.error is not None or result.ttft_seconds is None:
        return False
    limit = objectives.ttft_limit_seconds(result.prompt_tokens)
    if limit is not None and result.ttft_seconds > limit:
        return False
    mean = result.itl_mean_seconds
    return objectives.itl_seconds is None or mean is None or mean <= objectives.itl_seconds


def computed_tokens(results: Iterable[ReplayResult]) -> Mapping[str, int]:
    """Returns the prompt tokens that each instance computed, because they were not cached."""
    computed: dict[str, int] = {}
    for result in results:
        if result.instance is not None and result.cached_tokens is not None:
            uncached = result.prompt_tokens - result.cached_tokens
            computed[result.instance] = computed.get(result.instance, 0) + uncached
    return computed


def summarize_values(values: Iterable[float]) -> Distribution:
    """Returns mean and quantiles, with linear interpolation."""
    ordered = sorted(values)
    if not ordered:
        return Distribution(None, None, None, None)
    quantiles = {name: quantile(ordered, share) for name, share in QUANTILES}
    return Distribution(mean=math.fsum(ordered) / len(ordered), **quantiles)


def scale_times(results: Iterable[ReplayResult], speed: float) -> list[ReplayResult]:
    """Returns the results with every time multiplied by ``speed``: wall to simulated seconds."""
    return [
        replace(
            result,
            due_seconds=result.due_seconds * speed,
            ttft_seconds=None if result.ttft_seconds is None else result.ttft_seconds * speed,
            gaps=array("d", (gap * speed for gap in result.gaps)),
            finished_seconds=None if result.finished_seconds is None else result.finished_seconds * speed,
            late_seconds=result.late_seconds * speed,
        )
        for result in results
    ]


def _ratio(part: float, total: float) -> float | None:
    return part / total if total else None


def _load_cov(computed: Mapping[str, int], instances: int) -> float | None:
    count = max(instances, len(computed))
    total = sum(computed.values())
    if not total:
        return None
    mean = total / count
    squares = sum((value - mean) ** 2 for value in computed.values()) + (count - len(computed)) * mean**2
    return math.sqrt(squares / count) / mean
