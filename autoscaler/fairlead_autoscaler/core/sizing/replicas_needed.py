"""Demand: how many replicas the workload needs.

    load   = max(level at now + startup time + sigmas · spread, recurring bursts)
    demand = replicas for margin · load + backlog / (capacity · drain time)

in replicas of the group's first pool. A level uses the capacity that a replica has when the number
of replicas is the last demand. The number of replicas follows from the requests per second that the
level stands for, since more replicas carry more each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.performance.replica_capacity import ReplicaCapacity
from fairlead_autoscaler.core.settings import DemandSettings, ScalingSettings
from fairlead_autoscaler.core.sizing.pool_capacity import ReplicaModel
from fairlead_autoscaler.core.workload.load_forecast import LoadLevel

_USUAL_BACKLOG_REPLICAS = 0.5
"""A backlog of this many replicas is usual and adds no demand."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The number of replicas that a group needs, counted in replicas of its first pool.

    backlog: replicas on top, to drain the queue.
    current_level: the current level, without forecast, spread and margin.
    trend: replicas per second.
    inputs: the numbers that led to `replicas`.
    """

    replicas: float
    backlog: float
    current_level: float
    trend: float
    inputs: Mapping[str, DecisionInput]


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

    swing: share by which the load has exceeded its level before.
    bursts: level of recurring bursts.
    capacity: of a replica, as the level counts it.
    replica: a replica under the expected mean request.
    margin: the factor on capacity.
    spare_replicas: the part of a replica that need not be rounded up.
    ahead_seconds: the forecast horizon.
    """

    level: LoadLevel
    swing: float
    bursts: float
    capacity: ReplicaCapacity
    replica: ReplicaModel
    margin: float
    spare_replicas: float
    ahead_seconds: float
    backlog: Backlog


def estimate_demand(inputs: DemandInputs, settings: ScalingSettings) -> Demand:
    """Returns the demand of level, forecast, spread, bursts, margin and backlog.

    If more requests wait than usual, the last seconds count as the level.
    """
    level, backlog, margin = inputs.level, inputs.backlog, inputs.margin
    rate_per_replica, ahead = inputs.capacity.requests_per_second, inputs.ahead_seconds
    if backlog.requests > settings.demand.queue_usual * max(1.0, backlog.ready_replicas):
        level = replace(level, current=max(level.current, level.recent))
    raised = max(level.upper_bound(settings.load.spread_sigmas, inputs.swing, ahead), inputs.bursts)
    upper = raised * margin
    replicas = inputs.replica.replicas_for(upper * rate_per_replica, upper)
    steady = max(level.steady + settings.demand.gentle_room * (raised - level.steady), inputs.bursts) * margin
    replicas = _cap_soft_overshoot(inputs, replicas, upper, steady, settings.demand)
    gain = upper / replicas if replicas > 0.0 else 1.0
    replicas = max(replicas - inputs.spare_replicas, min(replicas, level.current / gain * margin))
    shortage = max(0.0, level.current - backlog.desired_replicas)
    growth = shortage * backlog.growth_seconds * settings.demand.backlog_ahead
    waiting = backlog.requests / rate_per_replica + growth
    backlog_replicas = max(0.0, waiting / settings.demand.drain_seconds - _USUAL_BACKLOG_REPLICAS)
    values = {
        "level_replicas": level.current,
        "spread_replicas": level.spread,
        "swing_share": inputs.swing,
        "trend_replicas_per_minute": level.slope * 60.0,
        "ahead_seconds": ahead,
        "forecast_replicas": level.current + level.slope * ahead,
        "recurring_burst_replicas": inputs.bursts,
        "margin": margin,
        "spared_replicas": inputs.spare_replicas,
        "crowd_gain": gain,
        "need_replicas": replicas,
        "backlog_requests": backlog.requests,
        "backlog_replicas": backlog_replicas,
    }
    return Demand(
        replicas,
        backlog_replicas,
        level.current,
        level.slope * margin,
        {name: DecisionInput(value) for name, value in values.items()},
    )


def _cap_soft_overshoot(
    inputs: DemandInputs, replicas: float, upper: float, steady: float, settings: DemandSettings
) -> float:
    """Returns `replicas`, or fewer if only a target that is missed gradually needs so many.

    An example is the TPOT target of short answers between the chunks of long prompts.

    Why: about as many of these answers are late at a higher load as at the mean. So room above the
    `steady` level saves few: 0.9 % of requests are late with ten replicas, 0.6 % with twelve, 0.4 %
    with fifteen. If queues or memory would fail with `gentle_reserve` times fewer replicas, there
    is no cap.
    """
    rate_per_replica = inputs.capacity.requests_per_second
    hard = replace(inputs.replica, settings=replace(inputs.replica.settings, hurt_share=math.inf))
    cliff = settings.gentle_reserve * hard.replicas_for(upper * rate_per_replica, upper)
    if cliff >= replicas:
        return replicas
    return min(replicas, max(cliff, inputs.replica.replicas_for(steady * rate_per_replica, steady)))
