"""The metrics of one run: latencies, cache hits and load balance of the requests after warm-up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead_sim.fleet.goodput import TokenDeadlines, smooth_goodput
from fairlead_sim.fleet.request import RequestResult

TARGET_SECONDS = 5.0
TARGET_SHARE = 0.90
GUARD_SECONDS = 15.0
GUARD_SHARE = 0.99
WARMUP_SHARE = 0.1
"""Share of the requests, by arrival, that fill the caches and do not count."""


@dataclass(frozen=True, slots=True)
class CapacityGoal:
    """The latency goal that bounds the capacity of a fleet.

    ``share`` of the first tokens must come within ``seconds``, and ``guard_share`` of them within
    ``guard_seconds``.

    Why: without the second bound a policy could starve some requests for the others.
    """

    seconds: float = TARGET_SECONDS
    share: float = TARGET_SHARE
    guard_seconds: float = GUARD_SECONDS
    guard_share: float = GUARD_SHARE

    def is_met(self, results: Sequence[RequestResult]) -> bool:
        """Whether these requests meet the goal. A failed request is late."""
        return (
            share_within(results, self.seconds) >= self.share
            and share_within(results, self.guard_seconds) >= self.guard_share
        )


WITHOUT_GUARD = CapacityGoal(guard_share=0.0)


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """The metrics of one run. Shares are 0..1, seconds are simulated; None: not measured."""

    requests: int
    errors: int
    attainment: float
    ttft_mean: float | None
    ttft_p50: float | None
    ttft_p90: float | None
    ttft_p99: float | None
    tpot_mean: float | None
    tpot_p99: float | None
    cached_token_share: float
    load_spread: float | None
    preempted_share: float
    smooth_goodput: float
    home_share: float | None = None


def without_warmup(results: Sequence[RequestResult]) -> Sequence[RequestResult]:
    """Returns the results after warm-up; ``results`` are in order of arrival."""
    return results[int(WARMUP_SHARE * len(results)) :]


def share_within(results: Sequence[RequestResult], seconds: float) -> float:
    """Returns the share of requests with a first token within ``seconds``; 0 for no request."""
    in_time = sum([result.ttft_seconds is not None and result.ttft_seconds <= seconds for result in results])
    return in_time / len(results) if results else 0.0


def run_metrics(
    results: Sequence[RequestResult],
    engines: int,
    *,
    home_share: float | None = None,
    target_seconds: float = TARGET_SECONDS,
) -> RunMetrics:
    """Returns the metrics of all given requests.

    - engines: the number of engines, including those that got no request.
    - target_seconds: the TTFT bound of ``attainment``.
    """
    ttfts = sorted([result.ttft_seconds for result in results if result.ttft_seconds is not None])
    tpots = sorted([pace for result in results if (pace := result.tpot_seconds) is not None])
    last = max([result.finish for result in results if result.finish is not None], default=0.0)
    span = last - results[0].arrival if results else 0.0
    return RunMetrics(
        requests=len(results),
        errors=sum([result.error is not None for result in results]),
        attainment=share_within(results, target_seconds),
        ttft_mean=_mean(ttfts),
        ttft_p50=_quantile(ttfts, 0.5),
        ttft_p90=_quantile(ttfts, 0.9),
        ttft_p99=_quantile(ttfts, 0.99),
        tpot_mean=_mean(tpots),
        tpot_p99=_quantile(tpots, 0.99),
        cached_token_share=sum([result.cached_tokens for result in results])
        / max(1, sum([result.prompt_tokens for result in results])),
        load_spread=_load_cov(results, engines),
        preempted_share=sum([result.preemptions for result in results]) / max(1, len(results)),
        smooth_goodput=smooth_goodput(results, engines * span, TokenDeadlines()) if span > 0 else 0.0,
        home_share=home_share,
    )


def attainment_by_window(results: Sequence[RequestResult], seconds: float) -> list[float]:
    """Returns the share of TTFTs within ``TARGET_SECONDS`` for each window of arrivals.

    Windows without arrivals are left out.

    seconds: length of a window.
    """
    by_window: dict[int, list[RequestResult]] = {}
    for result in results:
        by_window.setdefault(int((result.arrival - results[0].arrival) / seconds), []).append(result)
    return [share_within(by_window[number], TARGET_SECONDS) for number in sorted(by_window)]


def quantile(ordered: Sequence[float], share: float) -> float:
    """Returns a quantile of at least one ascending value, with linear interpolation."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return quantile(ordered, share) if ordered else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _load_cov(results: Sequence[RequestResult], engines: int) -> float | None:
    """Returns the standard deviation ÷ mean of the engines' computed prompt tokens.

    Returns None if nothing was computed.
    """
    computed: dict[str, int] = {}
    for result in results:
        if result.instance:
            computed[result.instance] = computed.get(result.instance, 0) + result.prompt_tokens - result.cached_tokens
    loads = [*computed.values(), *[0] * (engines - len(computed))]
    mean = sum(loads) / len(loads) if loads else 0.0
    return math.sqrt(sum([(load - mean) ** 2 for load in loads]) / len(loads)) / mean if mean else None
