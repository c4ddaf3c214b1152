"""Demand: how many replicas the workload needs.

    load   = max(level at now + startup time, recurring bursts), with the error of past forecasts
    demand = replicas with which the expected share of missed requests meets the goal
             + backlog / (capacity · drain time)

in replicas of the group's first pool. A level uses the capacity that a replica has when the number
of replicas is the last demand. The number of replicas follows from the requests per second that the
level stands for, since more replicas carry more each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.performance.replica_capacity import ExpectedLoad, ReplicaCapacity, ReplicaModel
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.workload.load_forecast import LoadLevel

USUAL_QUEUE: Final = 2.0
"""Queued requests for each ready replica that are usual."""
BACKLOG_AHEAD: Final = 1.0
"""Share of the growth of a queue during starts that counts."""

_USUAL_BACKLOG_REPLICAS = 0.5
"""A backlog of this many replicas is usual and adds no demand."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The number of replicas that a group needs, counted in replicas of its first pool.

    backlog: replicas on top, to drain the queue.
    current_level: the current level, without forecast and deviation.
    recent_level: of the last seconds alone.
    trend: replicas per second.
    inputs: the numbers that led to `replicas`.
    certain: `replicas` without the error of the forecast, but with bursts that come back.
    """

    replicas: float
    backlog: float
    current_level: float
    recent_level: float
    trend: float
    inputs: Mapping[str, DecisionInput]
    certain: float = 0.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """Queued requests, and the replicas that are ready and desired.

    growth_seconds: time for which the queue grows until new replicas are ready.
    """

    requests: float
    ready_replicas: float
    desired_replicas: float
    growth_seconds: float


@dataclass(frozen=True, slots=True)
class DemandInputs:
    """The inputs of a demand estimate.

    deviation: standard deviation of the load that is expected, as a share of it.
    bursts: level of recurring bursts.
    capacity: of a replica, as the level counts it.
    replica: a replica under the expected mean request.
    ahead_seconds: the forecast horizon.
    """

    level: LoadLevel
    deviation: float
    bursts: float
    capacity: ReplicaCapacity
    replica: ReplicaModel
    ahead_seconds: float
    backlog: Backlog


def estimate_demand(inputs: DemandInputs, settings: ScalingSettings) -> Demand:
    """Returns the demand of level, forecast, its deviation, bursts and backlog.

    If more requests wait than usual, the last seconds count as the level.
    """
    level, backlog = _level_with_queue(inputs), inputs.backlog
    rate_per_replica, ahead = inputs.capacity.requests_per_second, inputs.ahead_seconds
    expected = level.expected(ahead)
    certain = inputs.replica.replicas_for(ExpectedLoad(expected * rate_per_replica), expected)
    replicas = _replicas_at_goal(inputs, expected, inputs.replica.targets.allowed_miss_share, certain)
    shortage = max(0.0, level.current - backlog.desired_replicas)
    growth = shortage * backlog.growth_seconds * BACKLOG_AHEAD
    waiting = backlog.requests / rate_per_replica + growth
    backlog_replicas = max(0.0, waiting / settings.drain_seconds - _USUAL_BACKLOG_REPLICAS)
    values = {
        "level_replicas": level.current,
        "spread_replicas": level.spread,
        "deviation_share": inputs.deviation,
        "trend_replicas_per_minute": level.slope * 60.0,
        "ahead_seconds": ahead,
        "forecast_replicas": level.current + level.slope * ahead,
        "certain_replicas": certain,
        "recurring_burst_replicas": inputs.bursts,
        "need_replicas": replicas,
        "backlog_requests": backlog.requests,
        "backlog_replicas": backlog_replicas,
    }
    return Demand(
        replicas,
        backlog_replicas,
        level.current,
        level.recent,
        level.slope,
        {name: DecisionInput(value) for name, value in values.items()},
        replicas if inputs.bursts > 0.0 else certain,
    )


def relative_needs(inputs: DemandInputs, demand: Demand, goals: Mapping[str, float]) -> dict[str, float]:
    """Returns the replicas needed at other goals, as multiples of those of `demand`, by name.

    demand: at least some replicas.
    goals: shares (0..1) of requests that may miss, by name.
    """
    expected = _level_with_queue(inputs).expected(inputs.ahead_seconds)
    need = demand.replicas
    return {name: _replicas_at_goal(inputs, expected, goal, need) / need for name, goal in goals.items()}


def _level_with_queue(inputs: DemandInputs) -> LoadLevel:
    """Returns the level, or that of the last seconds if it is higher and many requests wait."""
    level, backlog = inputs.level, inputs.backlog
    if backlog.requests > USUAL_QUEUE * max(1.0, backlog.ready_replicas):
        return replace(level, current=max(level.current, level.recent))
    return level


def _replicas_at_goal(inputs: DemandInputs, expected: float, goal: float, near: float) -> float:
    """Returns the replicas with which the share `goal` of the requests misses, without backlog.

    expected: the forecast level.
    near: a guess; it only makes the search shorter.
    """
    rate_per_replica = inputs.capacity.requests_per_second
    replica = replace(inputs.replica, targets=replace(inputs.replica.targets, allowed_miss_share=goal))
    replicas = replica.replicas_for(ExpectedLoad(expected * rate_per_replica, inputs.deviation), near)
    if inputs.bursts > 0.0:
        replicas = max(replicas, replica.replicas_for(ExpectedLoad(inputs.bursts * rate_per_replica), replicas))
    return replicas
