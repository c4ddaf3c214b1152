"""From what gateways answered to what the core is shown. Pure.

Gateways are added up, since each counts its own requests. Engines are told of by every gateway, so of them the freshest word counts,
and one that is older than ``Limits.autoscaler_signals_seconds`` is none. What is in flight the gateways' own ledgers say.
What nobody told is None.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fairlead_autoscaler.collector.counter_deltas import CounterKey
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    ReplicaMetrics,
    ReplicaState,
    ShapeCount,
)
from fairlead_autoscaler.core.types import has_pool_choice
from fairlead_autoscaler.target import ModelState, PoolState, Replica


@dataclass(frozen=True, slots=True)
class GatewayMetrics:
    """One gateway's part of a look. ``counted`` and ``relayed`` are rises since the last look, None where there is nothing to compare
    with; ``gauges`` are as last read. ``why`` says what kept it from answering."""

    name: str
    increases: Mapping[CounterKey, float] | None = None
    engine_increases: Mapping[CounterKey, float] | None = None
    gauges: Mapping[CounterKey, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class GatewaySnapshot:
    """All gateways at one moment. ``notes`` say which are missing, and what else is wrong, in words."""

    gateways: tuple[GatewayMetrics, ...] = ()
    notes: tuple[str, ...] = ()


def build_observation(
    state: ModelState, snapshot: GatewaySnapshot, now: float, signals_seconds: float, wall: float | None = None
) -> Observation:
    """What the core is shown of a model ``now``; ``wall`` is Unix time."""
    key = state.model.name
    return Observation(
        now,
        gateway_traffic(key, snapshot),
        {name: _pool_observation(key, pool, snapshot, signals_seconds) for name, pool in state.pools.items()},
        wall,
        shape_counts(state.model, snapshot),
    )


def shape_counts(model: ModelSpec, snapshot: GatewaySnapshot) -> tuple[ShapeCount, ...] | None:
    """The shapes of what ended, over all gateways, of a model with several pools of one role; None where none could say."""
    told = [one.increases for one in snapshot.gateways if one.increases is not None]
    if not told or not has_pool_choice(model):
        return None
    found: dict[CounterKey, float] = {}
    for counted in told:
        for key, rise in counted.items():
            if key[:2] == ("shapes", model.name) and rise > 0.0:
                found[key[2:]] = found.get(key[2:], 0.0) + rise
    shapes = (_shape(tokens, rise) for tokens, rise in sorted(found.items()))
    return tuple(one for one in shapes if one is not None)


def _shape(tokens: CounterKey, requests: float) -> ShapeCount | None:
    """From the labels of a shape; None where they are none."""
    try:
        prompt, output = tokens
        return ShapeCount(float(prompt), float(output), requests)
    except ValueError:
        return None


def gateway_traffic(key: str, snapshot: GatewaySnapshot) -> GatewayTraffic | None:
    """What all gateways counted of a model; None where none of them could say."""
    parts = [one for one in snapshot.gateways if one.increases is not None]
    if not parts:
        return None
    return GatewayTraffic(
        arrivals=_sum_increases(parts, "arrivals", key) or 0.0,
        prompt_tokens=_sum_increases(parts, "prompt_tokens", key) or 0.0,
        held=sum(one.gauges.get(("held", key), 0.0) for one in parts),
        abandoned=_sum_increases(parts, "abandoned", key) or 0.0,
        kept=_sum_increases(parts, "kept", key),
        kept_tokens=_sum_increases(parts, "kept_tokens", key),
    )


def _sum_increases(parts: Iterable[GatewayMetrics], name: str, *rest: str) -> float | None:
    """The rises of one counter over all gateways; None where no gateway had one to compare."""
    told = [one.increases for one in parts if one.increases is not None]
    return sum(counted.get((name, *rest), 0.0) for counted in told) if told else None


def _pool_observation(key: str, pool: PoolState, readings: GatewaySnapshot, signals_seconds: float) -> PoolObservation:
    states = [one.state for one in pool.replicas]
    blind = all(one.increases is None for one in readings.gateways)
    return PoolObservation(
        desired=pool.desired,
        ready=states.count(ReplicaState.READY),
        pending=states.count(ReplicaState.PENDING) + states.count(ReplicaState.WAKING),
        draining=states.count(ReplicaState.DRAINING),
        pending_ages_seconds=tuple(one.age_seconds for one in pool.replicas if one.state is ReplicaState.PENDING),
        replicas=None
        if blind
        else tuple(_replica_metrics(key, one, readings, signals_seconds) for one in pool.replicas),
        asleep_desired=pool.asleep,
        asleep=states.count(ReplicaState.ASLEEP) + states.count(ReplicaState.FALLING_ASLEEP),
        waking=states.count(ReplicaState.WAKING),
    )


_LEDGER_GAUGES: Final = ("in_flight", "not_begun")


def _replica_metrics(key: str, replica: Replica, readings: GatewaySnapshot, signals_seconds: float) -> ReplicaMetrics:
    parts = [_instance_metrics(key, one, readings, signals_seconds) for one in replica.instances]
    blank = ReplicaMetrics(
        replica.id, replica.state, replica.age_seconds, replica.startup_seconds, woken=replica.last_wake
    )
    if not parts:
        return blank
    shares = [part.kv_share for part in parts if part.kv_share is not None]
    return ReplicaMetrics(
        replica.id,
        replica.state,
        replica.age_seconds,
        replica.startup_seconds,
        running=_sum_known(part.running for part in parts),
        waiting=_sum_known(part.waiting for part in parts),
        kv_share=max(shares, default=None),
        prompt_tokens=_sum_known(part.prompt_tokens for part in parts),
        generated_tokens=_sum_known(part.generated_tokens for part in parts),
        itl_seconds=_sum_known(part.itl_seconds for part in parts),
        finished=_sum_known(part.finished for part in parts),
        first_tokens=_sum_known(part.first_tokens for part in parts),
        cached_tokens=_sum_known(part.cached_tokens for part in parts),
        ttft_seconds=_sum_known(part.ttft_seconds for part in parts),
        ttft_counts=_sum_histograms(part.ttft_counts for part in parts),
        itl_counts=_sum_histograms(part.itl_counts for part in parts),
        woken=replica.last_wake,
    )


def _instance_metrics(key: str, instance: str, readings: GatewaySnapshot, signals_seconds: float) -> ReplicaMetrics:
    """One endpoint of a replica; its id and state do not matter."""
    engine = _freshest_gateway(key, instance, readings, signals_seconds)
    running, waiting = _in_flight(key, instance, readings, engine)
    relayed: Mapping[CounterKey, float] = (
        {} if engine is None or engine.engine_increases is None else engine.engine_increases
    )
    gateways = readings.gateways
    generated = relayed.get(("generated_tokens", key, instance))
    if generated is None:
        generated = _sum_increases(gateways, "output_tokens", key, instance)
    gaps = _sum_increases(gateways, "gaps", key, instance)
    gap_seconds = _sum_increases(gateways, "gap_seconds", key, instance)
    itl = gap_seconds / gaps * generated if gaps and gap_seconds is not None and generated is not None else None
    return ReplicaMetrics(
        instance,
        ReplicaState.READY,
        0.0,
        running=running,
        waiting=waiting,
        kv_share=None if engine is None else engine.gauges.get(("kv_share", key, instance)),
        prompt_tokens=relayed.get(("prompt_tokens", key, instance)),
        generated_tokens=generated,
        itl_seconds=itl,
        finished=_sum_increases(gateways, "finished", key, instance),
        first_tokens=_sum_increases(gateways, "first_tokens", key, instance),
        cached_tokens=relayed.get(("cached_tokens", key, instance)),
        ttft_seconds=_sum_increases(gateways, "ttft_seconds", key, instance),
        ttft_counts=_slo_counts(gateways, key, instance, "ttft"),
        itl_counts=_slo_counts(gateways, key, instance, "itl"),
    )


def _freshest_gateway(
    key: str, instance: str, readings: GatewaySnapshot, signals_seconds: float
) -> GatewayMetrics | None:
    """The gateway that heard from the engine last; None where none did lately."""
    found = [
        (age, one.name, one)
        for one in readings.gateways
        if one.error is None and (age := one.gauges.get(("age_seconds", key, instance))) is not None
    ]
    age, _, told = min(found, default=(signals_seconds, "", None))
    return told if age <= signals_seconds else None


def _in_flight(
    key: str, instance: str, readings: GatewaySnapshot, engine: GatewayMetrics | None
) -> tuple[float | None, float | None]:
    """Running and waiting. What is in flight the gateways know exactly and at once, if all of them answer, so that it fits what they
    count as finished; how much of it waits in the engine's own queue only the engine can say."""
    running = None if engine is None else engine.gauges.get(("running", key, instance))
    waiting = None if engine is None else engine.gauges.get(("waiting", key, instance))
    if not readings.gateways or any(one.error is not None for one in readings.gateways):
        return (None, None) if running is None or waiting is None else (running, waiting)
    in_flight, not_begun = (
        sum(one.gauges.get((name, key, instance), 0.0) for one in readings.gateways) for name in _LEDGER_GAUGES
    )
    queued = not_begun if waiting is None else min(waiting, not_begun)
    return in_flight - queued, queued


def _slo_counts(
    gateways: Iterable[GatewayMetrics], key: str, instance: str, objective: str
) -> tuple[float, ...] | None:
    """How many were within an objective, and how many were not."""
    parts = tuple(gateways)
    judged = _sum_increases(parts, "judged", key, instance, objective)
    within = _sum_increases(parts, "within", key, instance, objective)
    if judged is None or within is None:
        return None
    return within, max(0.0, judged - within)


def _sum_known(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _sum_histograms(parts: Iterable[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    known = [part for part in parts if part is not None]
    return tuple(sum(column) for column in zip(*known, strict=True)) if known else None
