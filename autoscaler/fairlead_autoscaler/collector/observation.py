"""Observation of a model: its pools from the scale target, its metrics from all gateways. Pure.

Counts of gateways are added up, since each gateway counts its own requests. Every gateway reports
every engine, so the freshest report of an engine counts; one older than
`AUTOSCALER_SIGNALS_SECONDS` is missing. Requests in flight are those that the gateways
count. A missing value is None.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

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
from fairlead_autoscaler.core.signals.validation import MAX_PROMPT_TOKENS
from fairlead_autoscaler.core.types import has_pool_choice
from fairlead_autoscaler.target import ModelState, PoolState, Replica


@dataclass(frozen=True, slots=True)
class GatewayMetrics:
    """The metrics of one gateway at one tick.

    increases: of its own counters since the last tick; None: there is nothing to compare with.
    engine_increases: of the counters of engines that it reports.
    error: why it did not answer; None: it did.
    """

    name: str
    increases: Mapping[CounterKey, float] | None = None
    engine_increases: Mapping[CounterKey, float] | None = None
    gauges: Mapping[CounterKey, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class GatewaySnapshot:
    """The metrics of all gateways at one tick.

    notes: which gateways are missing, and other problems, in words.
    """

    gateways: tuple[GatewayMetrics, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SignalAges:
    """The ages that decide about reports of gateways.

    signals_seconds: from which on an engine's report is missing.
    ejected_seconds: for how long every gateway has ejected an instance that is no capacity.
    """

    signals_seconds: float
    ejected_seconds: float = 60.0


def build_observation(
    state: ModelState, snapshot: GatewaySnapshot, now: float, ages: SignalAges, wall: float | None = None
) -> Observation:
    """Returns the observation of a model.

    wall: Unix seconds.
    """
    reader = _ModelReader(state.model.name, snapshot, ages)
    return Observation(
        now,
        gateway_traffic(state.model.name, snapshot),
        {name: reader.pool(pool) for name, pool in state.pools.items()},
        wall,
        shape_counts(state.model, snapshot),
    )


def shape_counts(model: ModelSpec, snapshot: GatewaySnapshot) -> tuple[ShapeCount, ...] | None:
    """Returns the shapes of the requests that finished, counted by all gateways.

    None if no gateway has counts, or if no role of the model has several pools.
    """
    known = [gateway.increases for gateway in snapshot.gateways if gateway.increases is not None]
    if not known or not has_pool_choice(model):
        return None
    counts: dict[CounterKey, float] = {}
    for increases in known:
        for key, increase in increases.items():
            if key[:2] == ("shapes", model.name) and increase > 0.0:
                counts[key[2:]] = counts.get(key[2:], 0.0) + increase
    shapes = (_shape(labels, requests) for labels, requests in sorted(counts.items()))
    return tuple(shape for shape in shapes if shape is not None)


def _shape(labels: CounterKey, requests: float) -> ShapeCount | None:
    try:
        prompt, output = labels
        return ShapeCount(float(prompt), float(output), requests)
    except ValueError:
        return None


def gateway_traffic(key: str, snapshot: GatewaySnapshot) -> GatewayTraffic | None:
    """Returns the traffic that all gateways counted of a model; None if no gateway has counts.

    A gateway's prompts have no more tokens than those of its arrivals can have.
    """
    known = [gateway for gateway in snapshot.gateways if gateway.increases is not None]
    if not known:
        return None
    return GatewayTraffic(
        arrivals=_sum_increases(known, "arrivals", key) or 0.0,
        prompt_tokens=sum(_prompt_tokens(gateway.increases or {}, key) for gateway in known),
        held=sum(gateway.gauges.get(("held", key), 0.0) for gateway in known),
        abandoned=_sum_increases(known, "abandoned", key) or 0.0,
        kept=_sum_increases(known, "kept", key),
        kept_tokens=_sum_increases(known, "kept_tokens", key),
    )


def moved_streams(key: str, snapshot: GatewaySnapshot) -> tuple[float, float]:
    """Returns how many streams of a model left draining instances, and their rest in seconds.

    Only those count whose rest the gateways could forecast.
    """
    streams, rest = (_sum_increases(snapshot.gateways, name, key) for name in ("moved_streams", "moved_rest_seconds"))
    return streams or 0.0, rest or 0.0


def _prompt_tokens(increases: Mapping[CounterKey, float], key: str) -> float:
    most = MAX_PROMPT_TOKENS * increases.get(("arrivals", key), 0.0)
    return min(most, increases.get(("prompt_tokens", key), 0.0))


def _sum_increases(gateways: Iterable[GatewayMetrics], *key: str) -> float | None:
    known = [gateway.increases for gateway in gateways if gateway.increases is not None]
    return sum(increases.get(key, 0.0) for increases in known) if known else None


@dataclass(frozen=True, slots=True)
class _ModelReader:
    """The reader of the metrics of the model `key`."""

    key: str
    snapshot: GatewaySnapshot
    ages: SignalAges

    def pool(self, pool: PoolState) -> PoolObservation:
        states = [replica.state for replica in pool.replicas]
        is_missing = all(gateway.increases is None for gateway in self.snapshot.gateways)
        starting = (replica for replica in pool.replicas if replica.state is ReplicaState.PENDING)
        return PoolObservation(
            desired=pool.desired,
            ready=states.count(ReplicaState.READY),
            pending=states.count(ReplicaState.PENDING) + states.count(ReplicaState.WAKING),
            draining=states.count(ReplicaState.DRAINING),
            pending_ages_seconds=tuple(replica.age_seconds for replica in starting),
            replicas=None if is_missing else tuple(self._replica(replica) for replica in pool.replicas),
            asleep_desired=pool.asleep,
            asleep=states.count(ReplicaState.ASLEEP) + states.count(ReplicaState.FALLING_ASLEEP),
            waking=states.count(ReplicaState.WAKING),
            ejected=self._ejected(pool.replicas),
        )

    def _ejected(self, replicas: Iterable[Replica]) -> int | None:
        """Returns how many ready replicas every gateway ejected; None if no gateway is known."""
        ready = [replica for replica in replicas if replica.state is ReplicaState.READY]
        if not reporting_gateways(self.snapshot):
            return None
        seconds = self.ages.ejected_seconds
        return sum(is_ejected(self.key, replica, self.snapshot, seconds) for replica in ready)

    def _replica(self, replica: Replica) -> ReplicaMetrics:
        """Returns the metrics of a replica: sums over its endpoints; of KV usage, the maximum."""
        metrics = ReplicaMetrics(
            replica.id, replica.state, replica.age_seconds, replica.startup_seconds, woken=replica.last_wake
        )
        parts = [self._instance(instance) for instance in replica.instances]
        if not parts:
            return metrics
        shares = [part.kv_share for part in parts if part.kv_share is not None]
        return replace(
            metrics,
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
        )

    def _instance(self, instance: str) -> ReplicaMetrics:
        """Returns the metrics of one endpoint; state and age in them are placeholders."""
        gateway = self._freshest_gateway(instance)
        running, waiting = self._in_flight(instance, gateway)
        engine = (gateway.engine_increases if gateway is not None else None) or {}
        generated = engine.get(("generated_tokens", self.key, instance))
        if generated is None:
            generated = self._sum("output_tokens", instance)
        gaps, gap_seconds = self._sum("gaps", instance), self._sum("gap_seconds", instance)
        itl_seconds = None
        if gaps and gap_seconds is not None and generated is not None:
            itl_seconds = gap_seconds / gaps * generated
        return ReplicaMetrics(
            instance,
            ReplicaState.READY,
            0.0,
            running=running,
            waiting=waiting,
            kv_share=None if gateway is None else gateway.gauges.get(("kv_share", self.key, instance)),
            prompt_tokens=engine.get(("prompt_tokens", self.key, instance)),
            generated_tokens=generated,
            itl_seconds=itl_seconds,
            finished=self._sum("finished", instance),
            first_tokens=self._sum("first_tokens", instance),
            cached_tokens=engine.get(("cached_tokens", self.key, instance)),
            ttft_seconds=self._sum("ttft_seconds", instance),
            ttft_counts=self._slo_counts(instance, "ttft"),
            itl_counts=self._slo_counts(instance, "itl"),
        )

    def _sum(self, name: str, *labels: str) -> float | None:
        return _sum_increases(self.snapshot.gateways, name, self.key, *labels)

    def _freshest_gateway(self, instance: str) -> GatewayMetrics | None:
        """Returns the gateway with the freshest report of an engine; None if all are too old."""
        reports = [
            (age, gateway.name, gateway)
            for gateway in self.snapshot.gateways
            if gateway.error is None and (age := gateway.gauges.get(("age_seconds", self.key, instance))) is not None
        ]
        age, _, freshest = min(reports, default=(self.ages.signals_seconds, "", None))
        return freshest if age <= self.ages.signals_seconds else None

    def _in_flight(self, instance: str, gateway: GatewayMetrics | None) -> tuple[float | None, float | None]:
        """Returns the running and the waiting requests of an endpoint; None if unknown.

        If all gateways answer, their counts of requests in flight are exact, and match what they
        count as finished. Only the engine can say how many of them wait in its own queue.
        """
        gauges = {} if gateway is None else gateway.gauges
        running, waiting = (gauges.get((name, self.key, instance)) for name in ("running", "waiting"))
        gateways = self.snapshot.gateways
        if not gateways or any(gateway.error is not None for gateway in gateways):
            return (None, None) if running is None or waiting is None else (running, waiting)
        in_flight, not_begun = (
            sum(gateway.gauges.get((name, self.key, instance), 0.0) for gateway in gateways)
            for name in ("in_flight", "not_begun")
        )
        queued = not_begun if waiting is None else min(waiting, not_begun)
        return in_flight - queued, queued

    def _slo_counts(self, instance: str, target: str) -> tuple[float, ...] | None:
        judged, within = self._sum("judged", instance, target), self._sum("within", instance, target)
        return None if judged is None or within is None else (within, max(0.0, judged - within))


def reporting_gateways(snapshot: GatewaySnapshot) -> list[GatewayMetrics]:
    return [gateway for gateway in snapshot.gateways if gateway.error is None or gateway.increases is not None]


def is_ejected(key: str, replica: Replica, snapshot: GatewaySnapshot, seconds: float) -> bool:
    """Returns True if every gateway has ejected all instances of a replica for longer than this.

    A missing gateway does not count. Its last gauges do for a while.
    """
    gateways = reporting_gateways(snapshot)
    ages = [
        gateway.gauges.get(("ejected_seconds", key, instance)) for gateway in gateways for instance in replica.instances
    ]
    return bool(ages) and all(age is not None and age > seconds for age in ages)


def _sum_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _sum_histograms(histograms: Iterable[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    known = [counts for counts in histograms if counts is not None]
    return tuple(sum(column) for column in zip(*known, strict=True)) if known else None
