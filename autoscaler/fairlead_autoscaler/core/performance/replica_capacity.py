"""Capacity of a replica: its requests per second at the SLO, from the seconds of an engine step.

A replica that gets r requests per second, each with `prompt` tokens to compute and `output` tokens
to generate, works in steps. Each step generates one token for every running sequence and computes
prompts that arrived meanwhile. With steps of T seconds, B = r·output·T sequences run, with context
= prompt + output/2 tokens each, and a step computes r·prompt·T prompt tokens. So

    T = a + b·B + c·context·B + d·r·prompt·T
    T = a / (1 - r·w),   w = d·prompt + output·(b + c·context)

A request costs `w` engine-seconds. So r·w is the share of time that goes into requests and not into
the base of the steps. Saturation is r·w -> 1. What is missed below that is derived in
`missed_share`. The capacity is the largest r at which no more than the allowed share is missed.

Targets that cannot be met: if one request alone on an engine takes longer than a target, no number
of replicas helps. Sizing then uses the best that there is, and the plan names the target
(`find_unreachable_target`). A target that can only just be met leads to the same, so nothing jumps
between the two cases: steps are at most a quarter longer than the shortest (r·w of a fifth).

The same shares answer two questions: the capacity of one of n replicas (`ReplicaModel.capacity`),
and the replicas for a load (`ReplicaModel.replicas_for`). The second is not the load divided by the
first, since capacity per replica grows with n. Nor is a load known exactly. Over all loads that may
come, each with its probability, the mean of the missed share must be the allowed one. Both
search among fixed numbers, so that no rounding makes more load or longer requests need less.

Source: TokenScale and Dynamo also scale by such a step model. Here misses follow from it at the
measured workload and speed, and the load is a distribution.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fairlead_autoscaler.core.performance.miss_corrections import NO_CORRECTIONS, MissCorrections, scale_odds
from fairlead_autoscaler.core.performance.missed_share import FleetMisses, MissedShares, MissPredictor
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest, StepModel

MIN_BUSY: Final = 0.2
"""Share of an engine's time in use from which its answers can be too slow."""

_SEARCH_BITS = 18
_MIN_REPLICAS, _MIN_RATE, _SEARCH_STEP = 1e-4, 1e-9, 1e-4
"""Replicas and rates are searched from these minima on, each larger than the one before by the
factor e^step: 2^18 numbers of replicas, 2^19 rates."""

_NORMAL_POINTS = (
    (3.05, 0.00298),
    (2.5, 0.00924),
    (2.0, 0.02784),
    (1.5, 0.06559),
    (1.0, 0.12098),
    (0.5, 0.17466),
    (-0.61, 0.59871),
)
"""A normal distribution in steps of half a deviation: middle and probability of each step, the
largest first. Steps are finest where a share of 0.1 % to 10 % lies above them, since misses rise
from none to all within one deviation."""


class Bound(StrEnum):
    """The bound that limits the capacity of a replica."""

    ITL = "TPOT target"
    BATCH = "batch size"
    KV = "KV memory"
    TTFT = "TTFT target"


@dataclass(frozen=True, slots=True)
class ReplicaCapacity:
    """The capacity of one replica in requests per second, and the bound that limits it.

    engine_seconds: engine time of one request.
    """

    requests_per_second: float
    engine_seconds: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class UnreachableTarget:
    """A bound that one request exceeds even alone on an engine.

    required, allowed: seconds, or tokens for KV memory.
    """

    bound: Bound
    required: float
    allowed: float

    def __str__(self) -> str:
        unit = "tokens" if self.bound is Bound.KV else "s"
        return f"{self.bound.value} cannot be met: one request alone takes {self.required:.3g} of {self.allowed:.3g} {unit}"


def find_unreachable_target(step: StepModel, request: MeanRequest, targets: LatencyTargets) -> UnreachableTarget | None:
    """Returns the bound that keeps an otherwise idle replica from serving the request within the
    targets; None: there is none.
    """
    tokens = request.prompt_tokens + request.output_tokens
    if tokens > step.kv_tokens:
        return UnreachableTarget(Bound.KV, tokens, step.kv_tokens)
    first = max(1.0, request.computed_tokens / step.chunk_tokens) * step.base_seconds + step.prompt_seconds(request)
    if targets.ttft_seconds is not None and first > targets.ttft_seconds:
        return UnreachableTarget(Bound.TTFT, first, targets.ttft_seconds)
    gap = step.base_seconds + step.token_seconds(request.context_tokens)
    if targets.itl_seconds is not None and request.output_tokens >= 2.0 and gap > targets.itl_seconds:
        return UnreachableTarget(Bound.ITL, gap, targets.itl_seconds)
    return None


@dataclass(frozen=True, slots=True)
class ExpectedLoad:
    """A load that is known only approximately.

    requests_per_second: its mean.
    deviation: its standard deviation, as a share of the mean.
    """

    requests_per_second: float
    deviation: float = 0.0


@dataclass(frozen=True, slots=True)
class ReplicaModel:
    """One replica of a pool under a workload: its steps, the mean request and the targets.

    corrections: factors on predicted misses, as learned from those that were counted.
    min_busy: share of an engine's time in use below which no answer counts as too slow.
    """

    step: StepModel
    request: MeanRequest
    targets: LatencyTargets
    corrections: MissCorrections = NO_CORRECTIONS
    min_busy: float = MIN_BUSY

    def missed(self, load: ExpectedLoad, replicas: float) -> MissedShares:
        """Returns the missed shares of `load` on `replicas`, as predicted, without corrections."""
        fleet = MissPredictor(self.step, self.request, self.targets).on_fleet(replicas)
        prompts = batch = memory = gaps = busy = 0.0
        for rate, weight in _load_points(load.requests_per_second, load.deviation):
            part = fleet.shares(rate / replicas)
            share = weight * rate / load.requests_per_second
            prompts, batch = prompts + share * part[0], batch + share * part[1]
            memory, gaps = memory + share * part[2], gaps + share * part[3]
            busy += share * part[4]
        return MissedShares(prompts, batch, memory, gaps, busy)

    def capacity(self, replicas: float) -> ReplicaCapacity:
        """Returns the capacity of each of `replicas`, and the bound that limits it.

        It is the largest rate within the targets, or as near to them as possible.
        """
        predictor, allowed = MissPredictor(self.step, self.request, self.targets), self.targets.allowed_miss_share
        fleet, engine_seconds = predictor.on_fleet(replicas), predictor.engine_seconds

        def rate(index: int) -> float:
            return _MIN_RATE * math.exp(_SEARCH_STEP * index)

        def is_too_much(index: int) -> bool:
            tried = rate(index)
            return tried * engine_seconds >= 1.0 or self._missed_share(fleet, tried, engine_seconds) > allowed

        first = _first_true(0, 2 << _SEARCH_BITS, is_too_much)
        return ReplicaCapacity(rate(first - 1), engine_seconds, self._largest_bound(fleet, rate(first), engine_seconds))

    def replicas_for(self, load: ExpectedLoad, near: float) -> float:
        """Returns the replicas with which the expected share of missed requests is the allowed one,
        or as near to it as possible. The number need not be whole.

        near: a guess; it only makes the search shorter.
        """
        if load.requests_per_second <= 0.0:
            return 0.0
        # Several computations lead to one load; their rounding must not count.
        mean = float(f"{load.requests_per_second:.9g}")
        points, allowed = _load_points(mean, load.deviation), self.targets.allowed_miss_share
        predictor = MissPredictor(self.step, self.request, self.targets)
        engine_seconds = predictor.engine_seconds

        def count(index: int) -> float:
            return _MIN_REPLICAS * math.exp(_SEARCH_STEP * index)

        def is_enough(index: int) -> bool:
            replicas = count(index)
            fleet = predictor.on_fleet(replicas)
            missed = 0.0
            for rate, weight in points:
                missed += weight * self._missed_share(fleet, rate / replicas, engine_seconds) * rate / mean
                if missed > allowed:
                    return False
            return True

        last = (1 << _SEARCH_BITS) - 1
        low, high = -1, last
        index = min(last - 1, max(0, round(math.log(max(near, _MIN_REPLICAS) / _MIN_REPLICAS) / _SEARCH_STEP)))
        stride = 64
        while low < index < high:
            if is_enough(index):
                high, index = index, index - stride
            else:
                low, index = index, index + stride
            stride *= 4
        return count(_first_true(low, high, is_enough))

    def unreachable_target(self) -> UnreachableTarget | None:
        """Returns the target that no number of replicas can meet; None: there is none."""
        return find_unreachable_target(self.step, self.request, self.targets)

    def _missed_share(self, fleet: FleetMisses, rate: float, engine_seconds: float) -> float:
        first_tokens, gaps, batch, memory = self._corrected_shares(fleet, rate, engine_seconds)
        return min(1.0, first_tokens + gaps + batch + memory)

    def _largest_bound(self, fleet: FleetMisses, rate: float, engine_seconds: float) -> Bound:
        shares = self._corrected_shares(fleet, rate, engine_seconds)
        return _BOUNDS[shares.index(max(shares))]

    def _corrected_shares(
        self, fleet: FleetMisses, rate: float, engine_seconds: float
    ) -> tuple[float, float, float, float]:
        """Returns the shares that miss by each bound, in the order of `_BOUNDS`."""
        prompts, batch, memory, slow, _ = fleet.shares(rate)
        first_tokens, gaps = self.corrections.first_tokens, self.corrections.gaps
        is_busy = rate * engine_seconds > self.min_busy
        return (
            scale_odds(prompts, first_tokens),
            scale_odds(slow, gaps) if is_busy else 0.0,
            scale_odds(batch, first_tokens),
            scale_odds(memory, first_tokens),
        )


_BOUNDS = (Bound.TTFT, Bound.ITL, Bound.BATCH, Bound.KV)


def _load_points(mean: float, deviation: float) -> list[tuple[float, float]]:
    """Returns rates and weights that stand for a load, the largest rate first."""
    if deviation <= 0.0:
        return [(mean, 1.0)]
    points = ((mean * (1.0 + deviation * sigmas), weight) for sigmas, weight in _NORMAL_POINTS)
    return [(rate, weight) for rate, weight in points if rate > 0.0]


def _first_true(low: int, high: int, predicate: Callable[[int], bool]) -> int:
    """Returns the first index above `low` from which on the predicate holds; `high` if there is
    none.
    """
    while high - low > 1:
        middle = (low + high) // 2
        if predicate(middle):
            high = middle
        else:
            low = middle
    return high
