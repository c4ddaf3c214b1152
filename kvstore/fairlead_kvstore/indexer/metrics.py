"""The indexer's probes and what it tells Prometheus. Everything is read when it is asked for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead.runtime.aiohttp_server import ProbeResult, add_probes
from fairlead_kvstore.indexer.counters import COUNTER_FAMILIES
from fairlead_kvstore.indexer.engine_member import EngineStatus
from fairlead_kvstore.indexer.indexer import Indexer

_PREFIX = "fairlead_indexer_"
_LAG_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class IndexerHealth:
    """``waits_for``: what a start still waits for, in words; empty when it is over. ``leads``: models that this process writes."""

    startup_blocker: str
    led_models: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    connected: bool = False
    loop_lag_seconds: float | None = None
    notes: Sequence[str] = ()


class IndexerMetrics(Collector):
    """Families by model; instances are only counted, since a page of thousands of them helps nobody."""

    def __init__(self, indexer: Indexer, pulse: Callable[[], IndexerHealth]) -> None:
        self._indexer = indexer
        self._pulse = pulse

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        seen, pulse = list(self._indexer.engine_statuses()), self._pulse()
        yield from self._counters(seen)
        yield from _gauges(seen)
        yield _model_flags("leads", "1 where this process writes the model's index", pulse.models, pulse.led_models)
        yield GaugeMetricFamily(f"{_PREFIX}redis_connected", "1 while Redis answers", float(pulse.connected))
        truth = self._indexer.store
        yield GaugeMetricFamily(f"{_PREFIX}table_bytes", "memory of the tables of all blocks", truth.bytes)
        if pulse.loop_lag_seconds is not None:  # not measured yet is not zero
            yield GaugeMetricFamily(
                f"{_PREFIX}loop_lag_seconds", "lateness of the event loop, p99", pulse.loop_lag_seconds
            )
        strangers = CounterMetricFamily(
            f"{_PREFIX}strangers", "messages of engines that dial and that nobody in the fleet sent", labels=["reason"]
        )
        for reason, count in sorted(self._indexer.unidentified_messages().items()):
            strangers.add_metric([reason], count)
        yield strangers

    def _counters(self, seen: Sequence[EngineStatus]) -> Iterator[Metric]:
        totals = self._indexer.departed.with_current(seen)
        for name, (says, _) in COUNTER_FAMILIES.items():
            family = CounterMetricFamily(f"{_PREFIX}{name}", says, labels=["model"])
            for model_key, counts in sorted(totals.counts.items()):
                family.add_metric([model_key], counts[name])
            yield family
        unreadable = CounterMetricFamily(
            f"{_PREFIX}unreadable", "messages that could not be read", labels=["model", "reason"]
        )
        for model_key, reasons in sorted(totals.unreadable.items()):
            for reason, count in sorted(reasons.items()):
                unreadable.add_metric([model_key, reason], count)
        yield unreadable


def _gauges(seen: Sequence[EngineStatus]) -> Iterator[Metric]:
    counted: dict[str, tuple[str, Callable[[EngineStatus], float]]] = {
        "instances": ("instances whose events are to be read", lambda one: 1),
        "connected": ("of them, those that are connected", lambda one: one.connected),
        "incomplete": ("of them, those of which not everything is known", lambda one: not one.state.complete),
        "replaying": ("of them, those whose missing batches are waited for", lambda one: one.replaying),
        "blocks": ("blocks that instances hold", lambda one: one.state.blocks),
        "waiting_orphans": ("blocks that wait for their parent", lambda one: one.state.orphans),
    }
    for name, (says, read) in counted.items():
        family = GaugeMetricFamily(f"{_PREFIX}{name}", says, labels=["model"])
        sums: dict[str, float] = {}
        for one in seen:
            sums[one.model_key] = sums.get(one.model_key, 0.0) + read(one)
        for model_key, value in sorted(sums.items()):
            family.add_metric([model_key], value)
        yield family
    lag = GaugeMetricFamily(
        f"{_PREFIX}lag_seconds",
        "from an engine's stamp on its last batch until it was applied, by two clocks; of the slowest instance",
        labels=["model"],
    )
    slowest: dict[str, float] = {}
    for one in seen:
        if one.counters.lag_seconds is not None:
            slowest[one.model_key] = max(one.counters.lag_seconds, slowest.get(one.model_key, one.counters.lag_seconds))
    for model_key, value in sorted(slowest.items()):
        lag.add_metric([model_key], value)
    yield lag


def _model_flags(name: str, says: str, models: frozenset[str], on: frozenset[str]) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}{name}", says, labels=["model"])
    for model_key in sorted(models):
        family.add_metric([model_key], float(model_key in on))
    return family


def create_app(indexer: Indexer, health: Callable[[], IndexerHealth]) -> web.Application:
    """Returns the application with `/healthz`, `/readyz` and `/metrics`."""

    def ready() -> ProbeResult:
        now = health()
        text = "\n".join([now.startup_blocker or "ready", *now.notes])
        return ProbeResult(not now.startup_blocker, text)

    app = web.Application()
    add_probes(app, IndexerMetrics(indexer, health), lambda: ProbeResult(True, "the loop runs"), ready)
    return app
