"""The numbers of one run: what the requests that count got, and how the fleet carried them. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead_sim.goodput import Reader, smooth_goodput
from fairlead_sim.served import Served

TARGET_SECONDS = 5.0
TARGET_SHARE = 0.90
GUARD_SECONDS = 15.0
GUARD_SHARE = 0.99
WARMING = 0.1
"""Of the requests, by arrival: they fill the caches and do not count."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What a fleet must keep to be within its capacity: so many first tokens within so many seconds, and the guard that the others
    are not starved for it."""

    seconds: float = TARGET_SECONDS
    share: float = TARGET_SHARE
    guard_seconds: float = GUARD_SECONDS
    guard_share: float = GUARD_SHARE

    def kept(self, served: Sequence[Served]) -> bool:
        """By requests that count. What failed is late for both."""
        return within(served, self.seconds) >= self.share and within(served, self.guard_seconds) >= self.guard_share


UNGUARDED = Bar(guard_share=0.0)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the requests that count. Shares are 0..1, seconds simulated ones; what nothing was measured of is None."""

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


def counted(served: Sequence[Served]) -> Sequence[Served]:
    """Without those that warm the caches; ``served`` in the order of arrival."""
    return served[int(WARMING * len(served)) :]


def within(served: Sequence[Served], seconds: float) -> float:
    """Share of requests whose first token came in time; 0 of none."""
    good = sum([one.ttft_seconds is not None and one.ttft_seconds <= seconds for one in served])
    return good / len(served) if served else 0.0


def figures(
    served: Sequence[Served],
    engines: int,
    *,
    home_share: float | None = None,
    target_seconds: float = TARGET_SECONDS,
) -> Figures:
    """Of the requests given, all of them; ``engines`` is how many there were, those that got nothing included. ``attainment`` is of
    first tokens within ``target_seconds``."""
    firsts = sorted([one.ttft_seconds for one in served if one.ttft_seconds is not None])
    paces = sorted([pace for one in served if (pace := one.itl_mean_seconds) is not None])
    last = max([one.finish for one in served if one.finish is not None], default=0.0)
    span = last - served[0].arrival if served else 0.0
    return Figures(
        requests=len(served),
        errors=sum([one.error is not None for one in served]),
        attainment=within(served, target_seconds),
        ttft_mean=_mean(firsts),
        ttft_p50=_quantile(firsts, 0.5),
        ttft_p90=_quantile(firsts, 0.9),
        ttft_p99=_quantile(firsts, 0.99),
        tpot_mean=_mean(paces),
        tpot_p99=_quantile(paces, 0.99),
        cached_token_share=sum([one.cached_tokens for one in served])
        / max(1, sum([one.prompt_tokens for one in served])),
        load_spread=_spread(served, engines),
        preempted_share=sum([one.preemptions for one in served]) / max(1, len(served)),
        smooth_goodput=smooth_goodput(served, engines * span, Reader()) if span > 0 else 0.0,
        home_share=home_share,
    )


def windows(served: Sequence[Served], seconds: float) -> list[float]:
    """Attainment of each stretch of so many seconds of arrivals, from the first arrival on; those without arrivals are left out."""
    found: dict[int, list[Served]] = {}
    for one in served:
        found.setdefault(int((one.arrival - served[0].arrival) / seconds), []).append(one)
    return [within(found[number], TARGET_SECONDS) for number in sorted(found)]


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of at least one value in rising order, linear between the two nearest."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return quantile(ordered, share) if ordered else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _spread(served: Sequence[Served], engines: int) -> float | None:
    """Standard deviation ÷ mean, over engines, of the prompt tokens that they computed."""
    computed: dict[str, int] = {}
    for one in served:
        if one.instance:
            computed[one.instance] = computed.get(one.instance, 0) + one.prompt_tokens - one.cached_tokens
    loads = [*computed.values(), *[0] * (engines - len(computed))]
    mean = sum(loads) / len(loads) if loads else 0.0
    return math.sqrt(sum([(load - mean) ** 2 for load in loads]) / len(loads)) / mean if mean else None
