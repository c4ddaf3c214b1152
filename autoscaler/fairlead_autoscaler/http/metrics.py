"""What the autoscaler tells Prometheus. Everything is read when it is asked for; what is not known has no line."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead.runtime.clock import Clock
from fairlead_autoscaler.control_loop import ControlLoop
from fairlead_autoscaler.core import PoolObservation
from fairlead_autoscaler.core.plan_inputs import usd_per_hour
from fairlead_autoscaler.enforcer import EnforcedPlan
from fairlead_autoscaler.history.recorder import TickRecord

PREFIX = "fairlead_autoscaler_"
_POOL = ["model", "pool"]


class AutoscalerMetrics(Collector):
    """Families by model and pool, of which there are as many as people have written."""

    def __init__(self, loop: ControlLoop, clock: Clock) -> None:
        self._loop = loop
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        looks = dict(sorted(self._loop.last_records().items()))
        yield from _pools(looks)
        yield _inputs(looks)
        yield from self._models(looks)
        yield from self._counters()
        yield from self._process()

    def _models(self, looks: Mapping[str, TickRecord]) -> Iterator[Metric]:
        ages = GaugeMetricFamily(
            f"{PREFIX}decision_age_seconds", "time since the model was decided on", labels=["model"]
        )
        seen = GaugeMetricFamily(
            f"{PREFIX}signals", "1 where gateways told what arrives, 0 where nobody could", labels=["model"]
        )
        cost = GaugeMetricFamily(
            f"{PREFIX}usd_per_hour",
            "what the replicas that there should be cost; none where no price is known",
            labels=["model"],
        )
        for key, look in looks.items():
            usd = usd_per_hour(look.model, {pool: one.instances for pool, one in look.rulings.items()})
            if usd is not None:
                cost.add_metric([key], usd)
            ages.add_metric([key], max(0.0, self._clock.now() - look.observation.now))
            seen.add_metric([key], float(look.observation.gateway is not None))
        yield from (ages, seen, cost)

    def _counters(self) -> Iterator[Metric]:
        counts = self._loop.counters
        decisions = CounterMetricFamily(
            f"{PREFIX}decisions", "decisions on a pool, by the rule that decided", labels=[*_POOL, "rule"]
        )
        for labels, count in sorted(counts.decisions.items()):
            decisions.add_metric(labels, count)
        writes = CounterMetricFamily(f"{PREFIX}writes", "numbers of replicas written", labels=[*_POOL, "direction"])
        for written, count in sorted(counts.writes.items()):
            writes.add_metric(written, count)
        refused = CounterMetricFamily(f"{PREFIX}write_errors", "numbers that could not be written", labels=_POOL)
        for one, count in sorted(counts.refused.items()):
            refused.add_metric(one, count)
        yield from (decisions, writes, refused)
        yield CounterMetricFamily(f"{PREFIX}ticks", "times that all models were decided on", counts.ticks)
        yield CounterMetricFamily(
            f"{PREFIX}ticks_skipped", "times that nothing was, since what there is could not be told", counts.skipped
        )
        yield CounterMetricFamily(f"{PREFIX}wakes", "hints of gateways that a request is held", counts.wakes)

    def _process(self) -> Iterator[Metric]:
        loop = self._loop
        missing = sum(one.error is not None for one in loop.gateways.gateways)
        yield GaugeMetricFamily(f"{PREFIX}gateways", "gateways that are read", len(loop.gateways.gateways))
        yield GaugeMetricFamily(f"{PREFIX}gateways_missing", "of them, those that did not answer", missing)
        yield GaugeMetricFamily(f"{PREFIX}tick_seconds", "how long the last tick took", loop.counters.tick_seconds)
        yield GaugeMetricFamily(f"{PREFIX}frozen", "1 while nothing is written", float(loop.is_frozen))
        yield GaugeMetricFamily(f"{PREFIX}leads", "1 in the process that writes", float(loop.is_leader))


_OBSERVED_GAUGES: Mapping[str, tuple[str, Callable[[PoolObservation], float]]] = {
    "ready_replicas": ("replicas that are ready", lambda pool: pool.ready),
    "pending_replicas": ("replicas that start", lambda pool: pool.pending),
    "draining_replicas": ("replicas that finish what they have and leave", lambda pool: pool.draining),
    "asleep_replicas": ("replicas that sleep, or drain to sleep", lambda pool: pool.asleep),
    "waking_replicas": ("of those that start, those that wake", lambda pool: pool.waking),
}
_PLAN_GAUGES: Mapping[str, tuple[str, Callable[[EnforcedPlan], float | None]]] = {
    "desired_replicas": ("replicas that are asked for now", lambda one: one.desired),
    "wanted_replicas": ("replicas that there should be", lambda one: one.replicas),
    "asleep_wanted_replicas": ("replicas that should sleep beside them", lambda one: one.asleep),
    "planned_replicas": ("what the load alone would take, before bounds and steps", lambda one: one.planned),
    "held_back": ("1 where the number is not written", lambda one: float(one.unwritten is not None)),
}


def _pools(looks: Mapping[str, TickRecord]) -> Iterator[Metric]:
    for name, (says, of_pool) in _OBSERVED_GAUGES.items():
        family = GaugeMetricFamily(PREFIX + name, says, labels=_POOL)
        for key, look in looks.items():
            for pool, seen in look.observation.pools.items():
                family.add_metric([key, pool], of_pool(seen))
        yield family
    for name, (says, of_ruling) in _PLAN_GAUGES.items():
        family = GaugeMetricFamily(PREFIX + name, says, labels=_POOL)
        for key, look in looks.items():
            for pool, ruling in look.rulings.items():
                value = of_ruling(ruling)
                if value is not None:
                    family.add_metric([key, pool], value)
        yield family


def _inputs(looks: Mapping[str, TickRecord]) -> Metric:
    """The numbers that led to the plan; their names are a closed list of the core's (docs/guides/autoscaling.md)."""
    family = GaugeMetricFamily(f"{PREFIX}input", "a number that led to the plan", labels=[*_POOL, "name"])
    for key, look in looks.items():
        for pool, plan in look.plan.pools.items():
            for name, one in plan.inputs.items():
                if one.value is not None:
                    family.add_metric([key, pool, name], one.value)
    return family
