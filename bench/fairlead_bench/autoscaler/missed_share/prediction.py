"""A core that watches a fleet of constant size, and the missed share that it predicts for it.

The core learns lengths, cached share, speed and its factors from metrics, as it always does. The
number of replicas and the rate are known, so that errors of the forecast do not count.
"""

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from fairlead.fleet.model import Role
from fairlead_autoscaler.core import ModelSpec, Observation, PoolPlan, ScalingCore, ScalingPlan
from fairlead_autoscaler.core.performance.miss_corrections import MissCorrections, scale_odds
from fairlead_autoscaler.core.performance.missed_share import MissedShares, missed_shares
from fairlead_autoscaler.core.performance.replica_capacity import ExpectedLoad, ReplicaModel
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest, StepModel
from fairlead_autoscaler.core.sizing.group_sizer import SHORT_SECONDS
from fairlead_autoscaler.core.sizing.pool_capacity import GroupService, latency_targets, pool_profile, replica_model
from fairlead_autoscaler.core.workload.mean_request import mean_request

_RATE_FACTORS: Final = 0.25, 2.0
"""The range in which the rate of a share is searched, as factors on the known rate."""
_SEARCH_STEPS = 40


@dataclass(frozen=True, slots=True)
class PredictedShare:
    """Missed shares (0..1) of a fixed fleet, as the core predicts them: means over ticks.

    derived: by the step model, at the known rate.
    corrected: with the factors that the core learned from counted misses.
    budgeted: what the error budget compares with counted misses: by the step model, at the load
        that the core believes, spread by the error of its forecast.
    sized: the same with the factors, as sizing reckons.
    learning: share of the ticks that taught factors. Where the core wants more replicas, none do.
    """

    derived: float
    corrected: float
    budgeted: float
    sized: float
    learning: float


@dataclass(frozen=True, slots=True)
class _TickPrediction:
    replica: ReplicaModel
    slowdown: float
    share: PredictedShare


class PredictingController:
    """A controller whose core sees everything and decides nothing. Its model has one pool.

    rate: requests per second of the whole fleet.
    since: the time from which on predictions count.
    """

    def __init__(self, model: ModelSpec, rate: float, since: float) -> None:
        self._core = ScalingCore(model)
        self._rate, self._since = rate, since
        self._ticks: list[_TickPrediction] = []
        self._replicas = 0

    def step(self, observation: Observation) -> ScalingPlan:
        """Returns an empty plan."""
        pool = self._core.model.pools[0]
        plan = self._core.step(observation).pools.get(pool.name)
        if observation.now > self._since and plan is not None and "level_replicas" in plan.inputs:
            self._replicas = observation.pools[pool.name].ready
            self._ticks.append(self._predict(observation.now, plan))
        return ScalingPlan({})

    def predicted(self) -> PredictedShare:
        """Returns the means over all ticks that count; there must be one."""
        shares = [tick.share for tick in self._ticks]
        return PredictedShare(
            fmean([share.derived for share in shares]),
            fmean([share.corrected for share in shares]),
            fmean([share.budgeted for share in shares]),
            fmean([share.sized for share in shares]),
            fmean([share.learning for share in shares]),
        )

    def rate_of(self, share: float) -> float:
        """Returns the rate at which the step model predicts ``share``, divided by the known rate.

        The workload is the mean over all ticks. Near saturation a small error of the rate is a
        large one of the share.
        """
        step, request, targets = self._mean_workload()
        low, high = _RATE_FACTORS
        for _ in range(_SEARCH_STEPS):
            middle = math.sqrt(low * high)
            rate = middle * self._rate / self._replicas
            if missed_shares(step, request, targets, rate, self._replicas).total > share:
                high = middle
            else:
                low = middle
        return low

    def _predict(self, now: float, plan: PoolPlan) -> _TickPrediction:
        state, settings, model = self._core.state, self._core.settings, self._core.model
        pool = model.pools[0]
        memory = state.groups[Role.SERVE.value]
        request = mean_request(state.lengths, Role.SERVE)
        targets = latency_targets(model, Role.SERVE, request.prompt_tokens)
        slowdown = state.pools[pool.name].speed.slowdown()
        replica = replica_model(pool, GroupService(request, targets), slowdown)
        level = (plan.inputs["level_replicas"].value or 0.0) * (
            plan.inputs["capacity_requests_per_second"].value or 0.0
        )
        corrections = memory.budget.corrections(settings)
        known = replica.missed(ExpectedLoad(self._rate), self._replicas)
        believed = known
        if level > 0.0:
            believed = replica.missed(ExpectedLoad(level, memory.deviation or 0.0), self._replicas)
        is_learning = now - memory.short_at > SHORT_SECONDS
        share = PredictedShare(
            known.total,
            _corrected(known, corrections),
            believed.total,
            _corrected(believed, corrections),
            float(is_learning),
        )
        return _TickPrediction(replica, slowdown, share)

    def _mean_workload(self) -> tuple[StepModel, MeanRequest, LatencyTargets]:
        requests = [tick.replica.request for tick in self._ticks]
        request = MeanRequest(
            fmean([one.prompt_tokens for one in requests]),
            fmean([one.output_tokens for one in requests]),
            fmean([one.cached_share for one in requests]),
            fmean([one.prompt_variability for one in requests]),
        )
        slowdown = fmean([tick.slowdown for tick in self._ticks])
        step = StepModel.from_profile(pool_profile(self._core.model.pools[0]), slowdown)
        return step, request, self._ticks[-1].replica.targets


def _corrected(missed: MissedShares, corrections: MissCorrections) -> float:
    """Returns the missed share with the learned factors, as sizing applies them."""
    first_tokens = sum(
        scale_odds(share, corrections.first_tokens) for share in (missed.prompts, missed.batch, missed.memory)
    )
    return min(1.0, first_tokens + scale_odds(missed.gaps, corrections.gaps))
