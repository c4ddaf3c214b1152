"""The metrics of one run: latencies, cache hits and load balance of the requests after warm-up.

Smooth goodput: what users get out of answers, as one number that neither delay nor abandoning
raises.

Why: plain goodput counts an answer or not, so that a server gains by abandoning late answers.

The model is a user who reads. The first token is due ``ttft_seconds`` after the request, each
further one ``token_seconds`` after the one before. A late token stops the reader, and all later
deadlines move by the delay (the slip is carried). The benefit of an answer of n tokens is

    w(n) · max(0, 1 - alpha · idle / (ttft_seconds + token_seconds · n))

where idle is the sum of all slips and w(n) = n. A dropped answer costs ``beta`` per token that was
sent in vain, and never brings more than the complete answer. Goodput is the sum of benefits per
engine-second.

Properties, tested on random timelines:

- A later token never raises it.
- A dropped answer never raises it.
- With ``alpha`` to infinity and ``beta`` to 0 it becomes plain goodput: the tokens of the answers
  that were never late.
- It adds up over replicas.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fairlead_sim.fleet.request import RequestResult

TARGET_SECONDS = 5.0
TARGET_SHARE = 0.90
GUARD_SECONDS = 15.0
GUARD_SHARE = 0.99
WARMUP_SHARE = 0.1
"""Share of the requests, by arrival, that fill the caches and do not count."""


@dataclass(frozen=True, slots=True)
class TokenDeadlines:
    """The speed at which a user reads, and the price of waiting.

    token_seconds: 0 describes a program that waits for the whole answer.
    """

    ttft_seconds: float = 5.0
    token_seconds: float = 0.05
    alpha: float = 1.0
    beta: float = 1.0


def idle_seconds(deadlines: TokenDeadlines, arrival: float, times: Iterable[float]) -> float:
    """Returns how many seconds a reader waits in all for tokens that come at ``times``."""
    idle = 0.0
    due = arrival + deadlines.ttft_seconds
    for at in times:
        if at > due + idle:
            idle = at - due
        due += deadlines.token_seconds
    return idle


def benefit(deadlines: TokenDeadlines, arrival: float, times: Sequence[float], *, dropped: bool = False) -> float:
    """Returns the benefit of one answer, in tokens.

    times: when its tokens came; those of a dropped answer up to the drop.
    """
    tokens = len(times)
    if dropped:
        return -deadlines.beta * tokens
    if not tokens:
        return 0.0
    idle = idle_seconds(deadlines, arrival, times)
    return tokens * max(0.0, 1.0 - deadlines.alpha * idle / (deadlines.ttft_seconds + deadlines.token_seconds * tokens))


def smooth_goodput(
    results: Iterable[RequestResult], engine_seconds: float, deadlines: TokenDeadlines | None = None
) -> float:
    """Returns the benefit of all answers in tokens per engine-second.

    engine_seconds: must be positive.
    """
    deadlines = deadlines or TokenDeadlines()
    total = sum(
        [benefit(deadlines, result.arrival, result.token_times, dropped=result.error is not None) for result in results]
    )
    return total / engine_seconds


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
