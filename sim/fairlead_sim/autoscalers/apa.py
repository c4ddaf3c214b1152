"""APA: the application-specific autoscaler of AIBrix, as shipped and with its faults mended.

Rule: every 10 s the metric is averaged over the pods and over a window of 180 s. In the list,
ratio = average ÷ target; n is the desired number, ready or not.

- ratio above 1.1: min(ceil(n × ratio), ceil(2 n)) replicas.
- ratio below 0.9: max(ceil(n × ratio), floor(n ÷ 2)) replicas.
- A cool-down over the recent recommendations follows: 0 s on the way up, 300 s on the way down.

As shipped, three things are wrong:

- The cool-down is inverted. On the way down it takes the *smallest* recommendation of the last
  300 s, where a cool-down takes the largest.
- A metric that cannot be fetched counts as 0.0 and not as an error. An outage, or an engine that
  still loads, reads as idle.
- n moves at once while the average lags by three minutes. Each period multiplies again what the
  period before has ordered.

``fixed`` mends the first two. It takes the largest of the window (on the way up: the smallest). It
leaves out missing values; without any value nothing changes. The third is the rule itself and
stays.

Constants: sync 10 s, window 180 s, tolerances 0.1, rates 2 and 2, cool-downs 0 and 300 s.

Source: vllm-project/aibrix at e3e10f9e (August 2026), pkg/controller/podautoscaler:
algorithm/apa.go (computeTargetReplicas), podautoscaler_controller.go (computeScaleDecision,
stabilizeRecommendation), context/context.go (defaults), metrics/fetcher.go (fetchFromPod),
types/metrics.go (TimeWindow). Apache-2.0. Facts, not code.

Changed: there is one metric, and the engines report it. No pod has the gateway's request rate. A
target at 0 with a minimum of 0 stays there, as the formula has it: AIBrix does not come back from
zero by itself.
"""

import math
from dataclasses import dataclass, replace

from fairlead.decision import DecisionInput
from fairlead.errors import BadInput
from fairlead_autoscaler.core.types import ModelSpec, PoolPlan, ReplicaState
from fairlead_sim.autoscalers.controller import PerPoolController
from fairlead_sim.autoscalers.metrics import Metric, PoolSample, replica_metric


@dataclass(frozen=True, slots=True)
class ApaSettings:
    """Settings of APA.

    target: for one replica, in the metric's unit.
    fixed: without the faults of the cool-down and of missing metrics.
    """

    target: float
    metric: Metric = Metric.KV
    fixed: bool = False
    window_seconds: float = 180.0
    up_tolerance: float = 0.1
    down_tolerance: float = 0.1
    max_up_rate: float = 2.0
    max_down_rate: float = 2.0
    up_cooldown_seconds: float = 0.0
    down_cooldown_seconds: float = 300.0
    period_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class ApaState:
    """Recent averages over the pods and recommendations, as (time, value), oldest first."""

    averages: tuple[tuple[float, float], ...] = ()
    recommended: tuple[tuple[float, int], ...] = ()


def apa(model: ModelSpec, settings: ApaSettings) -> PerPoolController[ApaState]:
    """Returns the APA preset: a controller that scales each pool as an APA of its own would, within
    the bounds of the pool.

    Raises BadInput for a metric that no pod has.
    """
    if settings.metric is Metric.REQUEST_RATE:
        raise BadInput("APA reads metrics of pods, and no pod has a request rate", field="metric")

    def decide(state: ApaState, look: PoolSample) -> tuple[ApaState, PoolPlan | None]:
        return _decide(state, look, settings)

    return PerPoolController(model, decide, start=ApaState(), period_seconds=settings.period_seconds)


def _decide(state: ApaState, look: PoolSample, settings: ApaSettings) -> tuple[ApaState, PoolPlan | None]:
    least, most, current = look.spec.minimum, look.spec.maximum, look.observed.desired
    if current == 0 and least != 0:
        return state, None
    if not least <= current <= most:
        return state, PoolPlan(min(max(current, least), most), "apa/bounds", f"{current} are outside the bounds.")
    values = _values(look, settings)
    if values:
        kept = (average for average in state.averages if average[0] >= look.now - settings.window_seconds)
        state = replace(state, averages=(*kept, (look.now, sum(values) / len(values))))
    elif settings.fixed or not state.averages:
        return state, None
    average = sum(value for _, value in state.averages) / len(state.averages)
    asked = min(max(_recommended(current, average / settings.target, settings), least), most)
    state, replicas = _apply_cooldown(state, asked, current, look.now, settings)
    rule = "apa/metric" if replicas == asked else "apa/cool-down"
    inputs = {"average": DecisionInput(average), "asked": DecisionInput(asked)}
    return state, PoolPlan(min(max(replicas, least), most), rule, f"The average asks for {asked} of {current}.", inputs)


def _values(look: PoolSample, settings: ApaSettings) -> list[float]:
    """Returns the metric of each pod. As shipped, a pod that does not answer counts as 0."""
    if look.observed.replicas is None:
        return [] if settings.fixed else [0.0] * (look.observed.ready + look.observed.pending + look.observed.draining)
    pods = look.observed.replicas
    if settings.fixed:
        pods = tuple(pod for pod in pods if pod.state is ReplicaState.READY)
    found = [replica_metric(settings.metric, pod) for pod in pods]
    if settings.fixed:
        return [value for value in found if value is not None]
    return [value or 0.0 for value in found]


def _recommended(current: int, ratio: float, settings: ApaSettings) -> int:
    if ratio > 1.0 + settings.up_tolerance:
        return min(math.ceil(current * ratio), math.ceil(settings.max_up_rate * current))
    if ratio < 1.0 - settings.down_tolerance:
        return max(math.ceil(current * ratio), math.floor(current / settings.max_down_rate))
    return current


def _apply_cooldown(
    state: ApaState, asked: int, current: int, now: float, settings: ApaSettings
) -> tuple[ApaState, int]:
    longest = max(settings.up_cooldown_seconds, settings.down_cooldown_seconds)
    kept = (one for one in state.recommended if one[0] > now - longest)
    state = replace(state, recommended=(*kept, (now, asked)))
    if asked == current:
        return state, current
    up = asked > current
    window = settings.up_cooldown_seconds if up else settings.down_cooldown_seconds
    within = [n for at, n in state.recommended if at > now - window] or [asked]
    cooled = max(within) if up != settings.fixed else min(within)
    if settings.fixed:  # a cool-down delays a change, it does not reverse it
        cooled = max(cooled, current) if up else min(cooled, current)
    return state, cooled
