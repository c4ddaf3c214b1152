"""WVA: the workload variant autoscaler of llm-d, in its saturation mode.

Rule: every 60 s, over the pools of one model and role ("variants"). The inputs are the largest KV
share and queue of each replica in the last minute.

- A replica is saturated at KV ≥ 0.80 or a queue ≥ 5.
- The spare of the others is averaged: 0.80 − KV and 5 − queue.
- Spare below 0.10 or 3: one replica more, of the cheapest variant that has nothing pending.
- Otherwise one replica less, of the dearest variant that has more than one. This needs two replicas
  that are not saturated, and both spares must remain with the same load on one replica fewer.
- While a variant is not yet at its desired number, or lacks reports of some replicas, nothing
  changes.

Constants: 0.80, 5, 0.10, 3, minimum of two unsaturated replicas, step 1; period 60 s (assumed
here).

Source: llm-d-incubation/workload-variant-autoscaler at 36587f8c, internal/saturation/analyzer.go
(AnalyzeModelSaturation, isScaleDownSafe, CalculateSaturationTargets). Apache-2.0. Facts, not code.
This is the analyzer that uses percentages ("V1"); the token-based one that later releases default
to is not modelled.

Changed: the bounds are each pool's own. A variant without a replica has no metrics and is never
scaled up, as in the original.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairlead.decision import DecisionInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import (
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ReplicaState,
    ScalingPlan,
)
from fairlead_sim.autoscalers.metrics import is_due

_MIN_UNSATURATED = 2  # to go down


@dataclass(frozen=True, slots=True)
class WvaSettings:
    """Settings of WVA. The thresholds define a saturated replica; the triggers define too
    little spare capacity.
    """

    kv_threshold: float = 0.80
    queue_threshold: float = 5.0
    kv_spare_trigger: float = 0.10
    queue_spare_trigger: float = 3.0
    period_seconds: float = 60.0
    peak_window_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class WvaVariant:
    """A pool. ``peaks``: the largest (KV share, queue) of each replica that reports."""

    facts: PoolSpec
    desired: int
    current: int
    pending: int
    peaks: tuple[tuple[float, float], ...]


ReplicaSamples = Mapping[str, tuple[float, float]]


class WvaController:
    """The controller of WVA. It keeps the samples of every replica from the last minute."""

    def __init__(self, model: ModelSpec, settings: WvaSettings) -> None:
        self._model = model
        self._settings = settings
        self._samples: tuple[tuple[float, ReplicaSamples], ...] = ()
        self._last: float | None = None

    def step(self, observation: Observation) -> ScalingPlan:
        window = self._settings.peak_window_seconds
        kept = (sample for sample in self._samples if sample[0] > observation.now - window)
        self._samples = (*kept, (observation.now, sample_replicas(observation)))
        if not is_due(self._last, observation.now, self._settings.period_seconds):
            return ScalingPlan()
        self._last = observation.now
        plans: dict[str, PoolPlan] = {}
        for role in Role:
            plans.update(decide(self._variants(role, observation), self._settings))
        return ScalingPlan(plans)

    def _variants(self, role: Role, observation: Observation) -> list[WvaVariant]:
        return [
            _variant(facts, observation.pools[facts.name], self._samples)
            for facts in self._model.pools
            if facts.role is role and facts.name in observation.pools
        ]


def sample_replicas(observation: Observation) -> ReplicaSamples:
    """Returns KV share and queue of every ready replica that reports both."""
    return {
        replica.id: (replica.kv_share, replica.waiting)
        for seen in observation.pools.values()
        for replica in seen.replicas or ()
        if replica.state is ReplicaState.READY and replica.kv_share is not None and replica.waiting is not None
    }


def decide(variants: Sequence[WvaVariant], settings: WvaSettings) -> dict[str, PoolPlan]:
    """Returns plans that add or remove at most one replica, of one variant."""
    reporting = [variant for variant in variants if variant.peaks]
    if not reporting or any(one.desired != one.current or len(one.peaks) != one.current for one in reporting):
        return {}
    spares = [
        (settings.kv_threshold - kv, settings.queue_threshold - queue)
        for one in reporting
        for kv, queue in one.peaks
        if kv < settings.kv_threshold and queue < settings.queue_threshold
    ]
    count = len(spares)
    kv_spare, queue_spare = (sum(pair[i] for pair in spares) / count if count else 0.0 for i in (0, 1))
    inputs = {
        "kv_spare": DecisionInput(kv_spare),
        "queue_spare": DecisionInput(queue_spare),
        "unsaturated": DecisionInput(count),
    }
    if kv_spare < settings.kv_spare_trigger or queue_spare < settings.queue_spare_trigger:
        able = [one for one in reporting if one.pending == 0]
        if not able:
            return {}
        chosen = min(able, key=lambda one: (one.facts.cost_per_hour, one.facts.name))
        return _plan(chosen, 1, "wva/saturated", "Too little is spare.", inputs)
    if _is_safe(count, kv_spare, queue_spare, settings):
        able = [one for one in reporting if len(one.peaks) > 1]
        if not able:
            return {}
        chosen = max(able, key=lambda one: (one.facts.cost_per_hour, one.facts.name))
        return _plan(chosen, -1, "wva/spare", "One replica fewer leaves enough spare.", inputs)
    return {}


def _is_safe(count: int, kv_spare: float, queue_spare: float, settings: WvaSettings) -> bool:
    """Returns whether the load on one replica fewer leaves more spare than the triggers."""
    if count < _MIN_UNSATURATED:
        return False
    more = count / (count - 1)
    kv_left = settings.kv_threshold - (settings.kv_threshold - kv_spare) * more
    queue_left = settings.queue_threshold - (settings.queue_threshold - queue_spare) * more
    return kv_left >= settings.kv_spare_trigger and queue_left >= settings.queue_spare_trigger


def _plan(
    variant: WvaVariant, change: int, rule: str, reason: str, inputs: Mapping[str, DecisionInput]
) -> dict[str, PoolPlan]:
    facts = variant.facts
    replicas = min(max(len(variant.peaks) + change, facts.minimum), facts.maximum)
    return {facts.name: PoolPlan(replicas, rule, reason, inputs)}


def _variant(facts: PoolSpec, seen: PoolObservation, samples: Sequence[tuple[float, ReplicaSamples]]) -> WvaVariant:
    ready = [replica.id for replica in seen.replicas or () if replica.state is ReplicaState.READY]
    peaks = []
    for replica in ready:
        known = [values[replica] for _, values in samples if replica in values]
        if known:
            peaks.append((max(kv for kv, _ in known), max(queue for _, queue in known)))
    return WvaVariant(facts, seen.desired, seen.ready + seen.pending, seen.pending, tuple(peaks))
