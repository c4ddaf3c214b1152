"""KEDA: a ScaledObject with one Prometheus threshold.

Rule: above zero KEDA is an HPA. It writes one with an external metric; the target of its average
per replica is the threshold. All of ``hpa`` holds: ceil(total ÷ threshold), tolerance, the largest
of 300 s, at most double.

Between 0 and 1 KEDA acts itself, every polling interval (30 s). The trigger is active while its
value is above the activation threshold (0). An active trigger takes a target at 0 to
max(1, minimum). A target with minimum 0 goes to 0 when the trigger was last active longer ago than
the cool-down (300 s). The Prometheus scaler takes an empty answer for 0 (``ignoreNullValues: true``
is the default), so missing metrics read as no load.

Constants: polling 30 s, cool-down 300 s, activation threshold 0, HPA sync 15 s.

Source: kedacore/keda at 8b4f083ca (August 2026), pkg/scaling/executor/scale_scaledobjects.go
(RequestScale, scaleToZeroOrIdle, scaleFromZeroOrIdle), pkg/scalers/prometheus_scaler.go,
apis/keda/v1alpha1/{withtriggers,scaledobject}_types.go. Apache-2.0. Facts, not code.

Changed: there is no fallback and no idle count. A query over the engines also counts the requests
queued in the gateway; otherwise nothing could wake a target at 0.
"""

from dataclasses import dataclass, field, replace

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.types import ModelSpec, PoolPlan
from fairlead_sim.autoscalers.controller import PerPoolController
from fairlead_sim.autoscalers.hpa import HpaObservation, HpaSettings, HpaState, milli, reconcile, with_pool_bounds
from fairlead_sim.autoscalers.metrics import Metric, PoolSample, is_due, pool_metric


@dataclass(frozen=True, slots=True)
class KedaSettings:
    """Settings of a ScaledObject. ``threshold``: for one replica, in the metric's unit."""

    threshold: float
    metric: Metric = Metric.CONCURRENCY
    activation_threshold: float = 0.0
    ignore_null_values: bool = True
    cooldown_seconds: float = 300.0
    polling_seconds: float = 30.0
    sync_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class KedaState:
    """The state of the HPA, and the times when the trigger was last active and last polled."""

    hpa: HpaState = field(default_factory=HpaState)
    active_at: float | None = None
    polled_at: float | None = None


def keda(model: ModelSpec, settings: KedaSettings) -> PerPoolController[KedaState]:
    """Returns the KEDA preset: a controller that scales each pool as a ScaledObject of its own
    would, within the bounds of the pool.
    """

    def decide(state: KedaState, look: PoolSample) -> tuple[KedaState, PoolPlan | None]:
        value = pool_metric(settings.metric, look)
        if value is None and settings.ignore_null_values:
            value = 0.0
        if is_due(state.polled_at, look.now, settings.polling_seconds):
            state, plan = _poll(replace(state, polled_at=look.now), settings, look, value)
            if plan is not None:
                return state, plan
        own = with_pool_bounds(HpaSettings(settings.threshold, settings.metric), look)
        total = None if value is None else milli(value)
        seen = HpaObservation(
            look.now, look.observed.desired, look.observed.ready + look.observed.pending, total_milli=total
        )
        inner, plan = reconcile(state.hpa, seen, own)
        return replace(state, hpa=inner), plan

    return PerPoolController(model, decide, start=KedaState(), period_seconds=settings.sync_seconds)


def _poll(
    state: KedaState, settings: KedaSettings, look: PoolSample, value: float | None
) -> tuple[KedaState, PoolPlan | None]:
    """Returns the next state, and KEDA's own plan to or from zero replicas; None for no change.

    value: the trigger's value; None when the scaler failed, which changes nothing.
    """
    if value is None:
        return state, None
    inputs = {"trigger": DecisionInput(value)}
    if value > settings.activation_threshold:
        state = replace(state, active_at=look.now)
        if look.observed.desired == 0:
            replicas = max(1, look.spec.minimum)
            return state, PoolPlan(replicas, "keda/activated", "The trigger is active and there is nothing.", inputs)
        return state, None
    cooled = state.active_at is None or look.now - state.active_at > settings.cooldown_seconds
    if look.spec.minimum == 0 and look.observed.desired > 0 and cooled:
        return state, PoolPlan(0, "keda/cooled-down", "The trigger has been inactive for the cool-down.", inputs)
    return state, None
