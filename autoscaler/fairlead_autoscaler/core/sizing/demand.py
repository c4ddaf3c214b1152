"""Demand."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.performance.capacity import (
    ReplicaCapacity,
)
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.sizing.pool_capacity import ReplicasForRate
from fairlead_autoscaler.core.workload.level import LoadLevel

_USUAL_BACKLOG_REPLICAS = 0.5
"""Replicas' worth of waiting that is as usual."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a group needs, in replicas of its first pool, and from what that follows. ``backlog`` is what it takes on top to work
    off what waits; ``level_now`` is what there is now, without anything added; ``trend`` is replicas per second."""

    replicas: float
    backlog: float
    current_level: float
    trend: float
    inputs: Mapping[str, DecisionInput]


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits: requests now, how many replicas are ready and asked for already, and for how long it will have grown when
    what is ordered now can be ready."""

    requests: float
    ready_replicas: float
    desired_replicas: float
    growth_seconds: float


def _cap_soft_overshoot(
    replicas: float,
    upper: float,
    steady: float,
    capacity: ReplicaCapacity,
    replicas_for: ReplicasForRate,
    replicas_for_hard_targets: ReplicasForRate,
    settings: ScalingSettings,
) -> float:
    """``replicas`` for ``upper``, or fewer where what makes them so many is missed gently: short answers between the chunks of long
    prompts. Of these about as many are late at times of more load as on the mean (0.9 % of requests with ten replicas, 0.6 % with
    twelve, 0.4 % with fifteen), so that room beside the ``steady`` level saves few. Where queues or memory would follow with no more
    than ``gentle_reserve`` times as many replicas, nothing is gentle."""
    cliff = settings.gentle_reserve * replicas_for_hard_targets(upper * capacity.requests_per_second, upper)
    if cliff >= replicas:
        return replicas
    return min(replicas, max(cliff, replicas_for(steady * capacity.requests_per_second, steady)))


def estimate_demand(
    level: LoadLevel,
    swing: float,
    bursts: float,
    capacity: ReplicaCapacity,
    replicas_for: ReplicasForRate,
    replicas_for_hard_targets: ReplicasForRate,
    margin: float,
    spare_replicas: float,
    ahead_seconds: float,
    queue: Backlog,
    settings: ScalingSettings,
) -> Demand:
    """Level, forecast, spread, bursts, margin and backlog together. Where more waits than usual, the last seconds count as the
    level. ``sized`` says how many replicas so many requests per second take, about as many as the second number, and ``steeply`` how
    many where only those objectives count that are missed steeply (``_gently``)."""
    if queue.requests > settings.queue_usual * max(1.0, queue.ready_replicas):
        level = replace(level, current=max(level.current, level.recent))
    raised = max(level.upper_bound(settings.spread_sigmas, swing, ahead_seconds), bursts)
    upper = raised * margin
    replicas = replicas_for(upper * capacity.requests_per_second, upper)
    steady = max(level.steady + settings.gentle_room * (raised - level.steady), bursts) * margin
    replicas = _cap_soft_overshoot(replicas, upper, steady, capacity, replicas_for, replicas_for_hard_targets, settings)
    gain = upper / replicas if replicas > 0.0 else 1.0
    replicas = max(replicas - spare_replicas, min(replicas, level.current / gain * margin))
    short = max(0.0, level.current - queue.desired_replicas)
    waiting = queue.requests / capacity.requests_per_second + short * queue.growth_seconds * settings.backlog_ahead
    backlog = max(0.0, waiting / settings.drain_seconds - _USUAL_BACKLOG_REPLICAS)
    inputs = {
        "level_replicas": DecisionInput(level.current),
        "spread_replicas": DecisionInput(level.spread),
        "swing_share": DecisionInput(swing),
        "trend_replicas_per_minute": DecisionInput(level.slope * 60.0),
        "ahead_seconds": DecisionInput(ahead_seconds),
        "forecast_replicas": DecisionInput(level.current + level.slope * ahead_seconds),
        "recurring_burst_replicas": DecisionInput(bursts),
        "margin": DecisionInput(margin),
        "spared_replicas": DecisionInput(spare_replicas),
        "crowd_gain": DecisionInput(gain),
        "need_replicas": DecisionInput(replicas),
        "backlog_requests": DecisionInput(queue.requests),
        "backlog_replicas": DecisionInput(backlog),
    }
    return Demand(replicas, backlog, level.current, level.slope * margin, inputs)
