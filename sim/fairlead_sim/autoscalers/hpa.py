"""HPA v2: Kubernetes' horizontal pod autoscaler, with one metric.

**Behavior** (``spec.behavior``): windows, rates and tolerances per direction. Kubernetes has
separate code for an autoscaler without a ``behavior``; that path is apart. The windows come first.
An increase goes to the smallest number of the up window at most. A decrease goes to the largest
number of the down window at least.

Then the rates apply. Each policy allows a change by a number of pods, or by a percentage, from the
replicas at the start of its period. That start is found by taking back the changes made since.
``select`` takes the policy that changes most (Max) or least (Min), or forbids the direction
(Disabled).

Source: kubernetes/kubernetes v1.36.3, pkg/controller/podautoscaler/horizontal.go,
stabilizeRecommendationWithBehaviors, convertDesiredReplicasWithBehaviorRate,
calculateScale{Up,Down}LimitWith…, storeScaleEvent; defaults from
pkg/apis/autoscaling/v2/defaults.go. Apache-2.0.

Changed: histories are values that are pruned, not slices that reuse old places. The decisions equal
those of the Go code on 200 vectors (tests/sim/autoscalers/golden).

**Rule**: every 15 s. With a metric of each pod, ratio = average over the pods that have the metric
÷ target, and replicas = ceil(ratio × those pods). A ratio within the tolerance of 1 changes
nothing.

- Pods without the metric count as idle when the ratio would raise the number. They count as at the
  target when it would lower it.
- Pending pods count as idle when it would raise the number, and not at all when it would lower it.
- If these corrections reverse the direction, nothing changes.

With a metric of the whole (request rate), replicas = ceil(total ÷ target); the tolerance applies to
total ÷ (target × replicas). Without any metric nothing changes.

The result is at most max(2 × replicas, 4), at least the largest number wanted in the last 300 s,
and within the bounds. A ``behavior`` puts its own rates and windows in place of the first two
(``ScalingBehavior``). The first observation records the present number as wanted, so that a
restarted controller does not scale down at once. A target at 0 replicas switches the autoscaler off
(feature gate HPAScaleToZero is off).

Constants: sync 15 s, tolerance 0.1, down window 300 s (flags of kube-controller-manager), ×2 and 4
(horizontal.go).

Source: kubernetes/kubernetes v1.36.3, pkg/controller/podautoscaler: replica_calculator.go
(calcPlainMetricReplicas, GetExternalPerPodMetricReplicas, groupPods), metrics/utilization.go
(GetMetricUsageRatio), horizontal.go (reconcileAutoscaler, normalizeDesiredReplicas,
stabilizeRecommendation, convertDesiredReplicasWithRules). Apache-2.0. Facts, not code: the results
equal those of the Go functions on 200 vectors (tests/sim/autoscalers/golden).

Changed: there is one metric instead of a list. A replica that starts is a running pod without a
metric: an engine's container runs for nearly all of the time it loads. Users of an HPA deploy at
least ``minReplicas``. Therefore the first plan raises a pool below it, where the controller itself
would stay off at 0.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.types import ModelSpec, PoolPlan, ReplicaState
from fairlead_sim.autoscalers.controller import PerPoolController
from fairlead_sim.autoscalers.metrics import Metric, PoolSample, pool_metric, replica_metric

History = tuple[tuple[float, int], ...]  # (time, number)


class PolicyKind(StrEnum):
    """The unit of a policy."""

    PODS = "Pods"
    PERCENT = "Percent"


class PolicySelect(StrEnum):
    """The rule that selects among several policies."""

    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """A limit of ``value`` pods or percent in any ``period_seconds``."""

    kind: PolicyKind
    value: int
    period_seconds: float


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """The rules of one direction.

    window_seconds, tolerance: None for the controller's own.
    """

    policies: tuple[ScalingPolicy, ...]
    window_seconds: float | None = None
    select: PolicySelect = PolicySelect.MAX
    tolerance: float | None = None


DEFAULT_UP = ScalingRules(
    (ScalingPolicy(PolicyKind.PODS, 4, 15.0), ScalingPolicy(PolicyKind.PERCENT, 100, 15.0)), window_seconds=0.0
)
DEFAULT_DOWN = ScalingRules((ScalingPolicy(PolicyKind.PERCENT, 100, 15.0),))


@dataclass(frozen=True, slots=True)
class ScalingBehavior:
    """The rules of both directions; the defaults are those of the API server."""

    up: ScalingRules = DEFAULT_UP
    down: ScalingRules = DEFAULT_DOWN


@dataclass(frozen=True, slots=True)
class ScaleEvents:
    """The changes made, as (time, number of replicas); the numbers are positive."""

    up: History = ()
    down: History = ()

    def plus(self, now: float, before: int, after: int, behavior: ScalingBehavior) -> "ScaleEvents":
        """Returns the events with the change from ``before`` to ``after``."""
        if after > before:
            return replace(self, up=(*_recent(self.up, now, behavior.up), (now, after - before)))
        return replace(self, down=(*_recent(self.down, now, behavior.down), (now, before - after)))


def stabilize(
    wanted: int, current: int, history: History, now: float, behavior: ScalingBehavior, down_window: float
) -> int:
    """Returns the current number, moved as far as all numbers wanted in both windows allow."""
    up_window = behavior.up.window_seconds or 0.0
    ceiling = min([wanted, *(n for at, n in history if at > now - up_window)])
    floor = max([wanted, *(n for at, n in history if at > now - down_window_seconds(behavior, down_window))])
    return min(max(current, ceiling), floor)


def limit_rate(wanted: int, current: int, events: ScaleEvents, now: float, behavior: ScalingBehavior) -> int:
    """Returns ``wanted``, limited by the rates of its direction."""
    if wanted > current:
        rules, choose = behavior.up, max if behavior.up.select is PolicySelect.MAX else min
        limit = _limit(rules, current, events, now, choose, _upper_limit)
        return min(wanted, max(limit, current))
    if wanted < current:
        rules, choose = behavior.down, min if behavior.down.select is PolicySelect.MAX else max
        limit = _limit(rules, current, events, now, choose, _lower_limit)
        return max(wanted, min(limit, current))
    return wanted


def down_window_seconds(behavior: ScalingBehavior, down_window: float) -> float:
    own = behavior.down.window_seconds
    return down_window if own is None else own


def _limit(
    rules: ScalingRules,
    current: int,
    events: ScaleEvents,
    now: float,
    choose: Callable[[Iterable[int]], int],
    moved: Callable[[int, ScalingPolicy], int],
) -> int:
    if rules.select is PolicySelect.DISABLED or not rules.policies:
        return current
    began = []
    for policy in rules.policies:
        added = sum(n for at, n in events.up if at > now - policy.period_seconds)
        taken = sum(n for at, n in events.down if at > now - policy.period_seconds)
        began.append(moved(current - added + taken, policy))
    return choose(began)


def _upper_limit(start: int, policy: ScalingPolicy) -> int:
    return start + policy.value if policy.kind is PolicyKind.PODS else math.ceil(start * (1 + policy.value / 100))


def _lower_limit(start: int, policy: ScalingPolicy) -> int:
    return start - policy.value if policy.kind is PolicyKind.PODS else int(start * (1 - policy.value / 100))


def _recent(history: History, now: float, rules: ScalingRules) -> History:
    longest = max((policy.period_seconds for policy in rules.policies), default=0.0)
    return tuple(one for one in history if one[0] >= now - longest)


class PodPhase(StrEnum):
    """The phase of a pod, as far as the calculation distinguishes it."""

    RUNNING = "running"
    PENDING = "pending"
    LEAVING = "leaving"  # being deleted, or failed


@dataclass(frozen=True, slots=True)
class HpaPod:
    """A pod. ``milli``: its metric in thousandths; None if it has none."""

    phase: PodPhase
    milli: int | None = None


@dataclass(frozen=True, slots=True)
class HpaObservation:
    """The inputs of one reconciliation.

    spec, status: the replicas of the target.
    pods, total_milli: the metric; both are None when there is none.
    """

    now: float
    spec: int
    status: int
    pods: tuple[HpaPod, ...] | None = None
    total_milli: int | None = None


@dataclass(frozen=True, slots=True)
class HpaSettings:
    """Settings of an HPA. ``target``: for one replica, in the metric's unit."""

    target: float
    metric: Metric = Metric.CONCURRENCY
    minimum: int = 1
    maximum: int = 1
    tolerance: float = 0.1
    down_window_seconds: float = 300.0
    behavior: ScalingBehavior | None = None
    period_seconds: float = 15.0

    @property
    def target_milli(self) -> int:
        return milli(self.target)

    def is_within_tolerance(self, ratio: float) -> bool:
        """Whether a ratio is too near to 1 to act on."""
        up = down = self.tolerance
        if self.behavior is not None:
            up = self.tolerance if self.behavior.up.tolerance is None else self.behavior.up.tolerance
            down = self.tolerance if self.behavior.down.tolerance is None else self.behavior.down.tolerance
        return 1.0 - down <= ratio <= 1.0 + up


@dataclass(frozen=True, slots=True)
class HpaState:
    """The numbers wanted before windows and limits, and the changes made."""

    wanted: History = ()
    events: ScaleEvents = field(default_factory=ScaleEvents)


def hpa(model: ModelSpec, settings: HpaSettings) -> PerPoolController[HpaState]:
    """Returns the HPA preset: a controller that scales each pool as an HPA of its own would, within
    the bounds of the pool.
    """

    def decide(state: HpaState, look: PoolSample) -> tuple[HpaState, PoolPlan | None]:
        own = with_pool_bounds(settings, look)
        if not state.wanted and look.observed.desired < own.minimum:
            state = HpaState(wanted=((look.now, own.minimum),))
            return state, PoolPlan(own.minimum, "hpa/deployed", "A target of an HPA is deployed with its minimum.")
        return reconcile(state, hpa_observation(own, look), own)

    return PerPoolController(model, decide, start=HpaState(), period_seconds=settings.period_seconds)


def with_pool_bounds(settings: HpaSettings, look: PoolSample) -> HpaSettings:
    least = max(1, look.spec.minimum)
    return replace(settings, minimum=least, maximum=max(least, look.spec.maximum))


def hpa_observation(settings: HpaSettings, look: PoolSample) -> HpaObservation:
    """Returns the inputs of the controller; ``status`` counts all replicas that do not drain."""
    status = look.observed.ready + look.observed.pending
    if settings.metric is Metric.REQUEST_RATE:
        total = pool_metric(settings.metric, look)
        return HpaObservation(
            look.now, look.observed.desired, status, total_milli=None if total is None else milli(total)
        )
    if look.observed.replicas is None:
        return HpaObservation(look.now, look.observed.desired, status)
    pods = []
    for replica in look.observed.replicas:
        if replica.state is ReplicaState.DRAINING:
            pods.append(HpaPod(PodPhase.LEAVING))
            continue
        value = replica_metric(settings.metric, replica) if replica.state is ReplicaState.READY else None
        pods.append(HpaPod(PodPhase.RUNNING, None if value is None else milli(value)))
    return HpaObservation(look.now, look.observed.desired, status, tuple(pods))


def reconcile(state: HpaState, seen: HpaObservation, settings: HpaSettings) -> tuple[HpaState, PoolPlan | None]:
    """Returns the next state of the controller and its plan; None when it writes nothing."""
    if not state.wanted:
        state = replace(state, wanted=((seen.now, seen.spec),))
    least, most = settings.minimum, settings.maximum
    if seen.spec == 0:
        return state, None
    if seen.spec > most:
        return _record_change(
            state, seen, settings, PoolPlan(most, "hpa/bounds", f"{seen.spec} are more than the maximum {most}.")
        )
    if seen.spec < least:
        return _record_change(
            state, seen, settings, PoolPlan(least, "hpa/bounds", f"{seen.spec} are fewer than the minimum {least}.")
        )
    wanted = proposed_replicas(seen, settings)
    if wanted is None:
        return state, None
    window = settings.down_window_seconds
    if settings.behavior is None:
        kept = tuple(one for one in state.wanted if one[0] >= seen.now - window)
        held = max([wanted, *(n for _, n in kept)])
        replicas = max(least, min(held, most, max(2 * seen.spec, 4)))
    else:
        longest = max(settings.behavior.up.window_seconds or 0.0, down_window_seconds(settings.behavior, window))
        kept = tuple(one for one in state.wanted if one[0] >= seen.now - longest)
        held = stabilize(wanted, seen.spec, kept, seen.now, settings.behavior, window)
        replicas = max(least, min(limit_rate(held, seen.spec, state.events, seen.now, settings.behavior), most))
    state = replace(state, wanted=(*kept, (seen.now, wanted)))
    return _record_change(state, seen, settings, _plan(seen, wanted, held, replicas))


def proposed_replicas(seen: HpaObservation, settings: HpaSettings) -> int | None:
    """Returns the number of replicas before windows, rates and bounds; None without a metric."""
    if seen.total_milli is not None:
        asked = settings.target_milli * seen.status
        near = asked > 0 and settings.is_within_tolerance(seen.total_milli / asked)
        return seen.status if near else math.ceil(seen.total_milli / settings.target_milli)
    return None if seen.pods is None else _proposed_by_pods(seen.pods, seen.spec, settings)


def _proposed_by_pods(pods: Sequence[HpaPod], current: int, settings: HpaSettings) -> int | None:
    target = settings.target_milli
    values = [pod.milli for pod in pods if pod.phase is PodPhase.RUNNING and pod.milli is not None]
    missing = sum(pod.phase is PodPhase.RUNNING and pod.milli is None for pod in pods)
    pending = sum(pod.phase is PodPhase.PENDING for pod in pods)
    if not values:
        return None
    ratio = (sum(values) // len(values)) / target
    if missing == 0 and not (pending and ratio > 1.0):
        return current if settings.is_within_tolerance(ratio) else math.ceil(ratio * len(values))
    if ratio > 1.0:
        values += [0] * (missing + pending)
    elif ratio < 1.0:
        values += [target] * missing
    again = (sum(values) // len(values)) / target
    if settings.is_within_tolerance(again) or (again < 1.0 < ratio):
        return current
    replicas = math.ceil(again * len(values))
    turned = (again < 1.0 and replicas > current) or (again > 1.0 and replicas < current)
    return current if turned else replicas


def milli(value: float) -> int:
    return math.ceil(round(value * 1000.0, 6))


def _record_change(
    state: HpaState, seen: HpaObservation, settings: HpaSettings, plan: PoolPlan
) -> tuple[HpaState, PoolPlan]:
    if settings.behavior is not None and plan.replicas != seen.spec:
        events = state.events.plus(seen.now, seen.spec, plan.replicas, settings.behavior)
        state = replace(state, events=events)
    return state, plan


def _plan(seen: HpaObservation, wanted: int, held: int, replicas: int) -> PoolPlan:
    inputs = {"wanted": DecisionInput(wanted), "held": DecisionInput(held)}
    if held != wanted:
        return PoolPlan(
            replicas, "hpa/stabilized", f"The metric asks for {wanted}; lately it asked for {held}.", inputs
        )
    if replicas != held:
        return PoolPlan(
            replicas, "hpa/limited", f"The metric asks for {wanted}; rate and bounds allow {replicas}.", inputs
        )
    return PoolPlan(replicas, "hpa/metric", f"The metric asks for {wanted}; there are {seen.spec}.", inputs)
