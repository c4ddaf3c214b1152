"""Prometheus metrics of the autoscaler. Values are read at each scrape; an unknown value has no
line.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead.runtime.clock import Clock
from fairlead_autoscaler.control_loop import ControlLoop
from fairlead_autoscaler.core import PoolObservation
from fairlead_autoscaler.core.plan_inputs import usd_per_hour
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.scaling_policy import EnforcedPlan

PREFIX = "fairlead_autoscaler_"
_POOL = ["model", "pool"]

_OBSERVED_GAUGES: Mapping[str, tuple[str, Callable[[PoolObservation], float | None]]] = {
    "ready_replicas": ("ready replicas", lambda pool: pool.ready),
    "ejected_replicas": ("of those, the ones that every gateway has ejected", lambda pool: pool.ejected),
    "pending_replicas": ("replicas that start or wake", lambda pool: pool.pending),
    "draining_replicas": ("replicas that drain before they stop", lambda pool: pool.draining),
    "asleep_replicas": ("replicas that sleep or fall asleep", lambda pool: pool.asleep),
    "waking_replicas": ("replicas that wake", lambda pool: pool.waking),
}
_PLAN_GAUGES: Mapping[str, tuple[str, Callable[[EnforcedPlan], float | None]]] = {
    "desired_replicas": ("desired replicas, as they are", lambda ruling: ruling.desired),
    "wanted_replicas": ("desired replicas, as decided", lambda ruling: ruling.replicas),
    "asleep_wanted_replicas": ("replicas that should sleep", lambda ruling: ruling.asleep),
    "planned_replicas": ("replicas that the core planned, before policy and bounds", lambda ruling: ruling.planned),
    "held_back": ("1 if the decided number is not written", lambda ruling: float(ruling.unwritten is not None)),
}


class AutoscalerMetrics(Collector):
    """Metric families by model and pool."""

    def __init__(self, loop: ControlLoop, clock: Clock) -> None:
        self._loop = loop
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        records = dict(sorted(self._loop.last_records().items()))
        yield from _pools(records)
        yield _inputs(records)
        yield from self._models(records)
        yield from self._counters()
        yield from self._loop_metrics()

    def _models(self, records: Mapping[str, TickRecord]) -> Iterator[Metric]:
        ages = GaugeMetricFamily(
            f"{PREFIX}decision_age_seconds", "seconds since the last decision about the model", labels=["model"]
        )
        seen = GaugeMetricFamily(
            f"{PREFIX}signals", "1 if a gateway reports arrivals, 0 if none does", labels=["model"]
        )
        cost = GaugeMetricFamily(
            f"{PREFIX}usd_per_hour",
            "cost per hour of the planned replicas; missing without prices",
            labels=["model"],
        )
        saved = CounterMetricFamily(
            f"{PREFIX}drain_saved_seconds",
            "seconds that removed replicas ended earlier, because their streams moved; an estimate",
            labels=_POOL,
        )
        for key, record in records.items():
            for pool, seconds in record.drain_saved_seconds.items():
                saved.add_metric([key, pool], seconds)
            usd = usd_per_hour(record.model, {pool: ruling.instances for pool, ruling in record.rulings.items()})
            if usd is not None:
                cost.add_metric([key], usd)
            ages.add_metric([key], max(0.0, self._clock.now() - record.observation.now))
            seen.add_metric([key], float(record.observation.gateway is not None))
        yield from (ages, seen, cost, saved)

    def _counters(self) -> Iterator[Metric]:
        counts = self._loop.counters
        decisions = CounterMetricFamily(
            f"{PREFIX}decisions", "decisions about a pool, by rule", labels=[*_POOL, "rule"]
        )
        for labels, count in sorted(counts.decisions.items()):
            decisions.add_metric(labels, count)
        writes = CounterMetricFamily(f"{PREFIX}writes", "written numbers of replicas", labels=[*_POOL, "direction"])
        for written, count in sorted(counts.writes.items()):
            writes.add_metric(written, count)
        refused = CounterMetricFamily(f"{PREFIX}write_errors", "failed writes of a number of replicas", labels=_POOL)
        for pool, count in sorted(counts.refused.items()):
            refused.add_metric(pool, count)
        yield from (decisions, writes, refused)
        yield CounterMetricFamily(f"{PREFIX}ticks", "completed ticks", counts.ticks)
        yield CounterMetricFamily(
            f"{PREFIX}ticks_skipped", "ticks without decisions, because the models were unavailable", counts.skipped
        )
        yield CounterMetricFamily(f"{PREFIX}wakes", "wake hints of gateways that queue a request", counts.wakes)

    def _loop_metrics(self) -> Iterator[Metric]:
        loop = self._loop
        missing = sum(gateway.error is not None for gateway in loop.gateways.gateways)
        yield GaugeMetricFamily(f"{PREFIX}gateways", "known gateways", len(loop.gateways.gateways))
        yield GaugeMetricFamily(f"{PREFIX}gateways_missing", "gateways that did not answer", missing)
        yield GaugeMetricFamily(f"{PREFIX}tick_seconds", "duration of the last tick", loop.counters.tick_seconds)
        yield GaugeMetricFamily(f"{PREFIX}frozen", "1 while scaling is frozen", float(loop.is_frozen))
        yield GaugeMetricFamily(f"{PREFIX}leads", "1 in the leader, which writes", float(loop.is_leader))


def _pools(records: Mapping[str, TickRecord]) -> Iterator[Metric]:
    for name, (help_text, pool_value) in _OBSERVED_GAUGES.items():
        family = GaugeMetricFamily(PREFIX + name, help_text, labels=_POOL)
        for key, record in records.items():
            for pool, seen in record.observation.pools.items():
                observed = pool_value(seen)
                if observed is not None:
                    family.add_metric([key, pool], observed)
        yield family
    for name, (help_text, ruling_value) in _PLAN_GAUGES.items():
        family = GaugeMetricFamily(PREFIX + name, help_text, labels=_POOL)
        for key, record in records.items():
            for pool, ruling in record.rulings.items():
                value = ruling_value(ruling)
                if value is not None:
                    family.add_metric([key, pool], value)
        yield family


def _inputs(records: Mapping[str, TickRecord]) -> Metric:
    """Returns the metric with the numbers that led to the plans.

    Their names are a closed list of the core (docs/concepts/autoscaling.md).
    """
    family = GaugeMetricFamily(f"{PREFIX}input", "an input of the plan", labels=[*_POOL, "name"])
    for key, record in records.items():
        for pool, plan in record.plan.pools.items():
            for name, shown in plan.inputs.items():
                if shown.value is not None:
                    family.add_metric([key, pool, name], shown.value)
    return family
