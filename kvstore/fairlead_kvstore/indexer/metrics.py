"""Probes and Prometheus metrics of the indexer. All values are read at request time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead.runtime.aiohttp_server import ProbeResult, add_probes, refuse_foreign_pages
from fairlead_kvstore.indexer.counters import COUNTER_FAMILIES
from fairlead_kvstore.indexer.engine_member import EngineStatus
from fairlead_kvstore.indexer.indexer import Indexer

_PREFIX = "fairlead_indexer_"
_LAG_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class IndexerHealth:
    """The health of the indexer.

    startup_blocker: what the start waits for; empty when it is over.
    led_models: models whose index this process writes.
    models: all models of the fleet.
    connected: Redis answers.
    redis_max_memory: its ``maxmemory`` in bytes, 0 without one; None while it is unknown.
    loop_lag_seconds: 99th percentile of the event loop's delay; None before it is measured.
    notes: further lines for the text of ``/readyz``.
    """

    startup_blocker: str
    led_models: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    connected: bool = False
    redis_max_memory: int | None = None
    loop_lag_seconds: float | None = None
    notes: Sequence[str] = ()


class IndexerMetrics(Collector):
    """The Prometheus collector of the indexer: metric families by model.

    Instances are only counted, since thousands of series would help no reader.
    """

    def __init__(self, indexer: Indexer, health: Callable[[], IndexerHealth]) -> None:
        self._indexer = indexer
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """Yields every family."""
        statuses, health = list(self._indexer.engine_statuses()), self._health()
        yield from self._counters(statuses)
        yield from _gauges(statuses)
        yield _model_flags("leads", "1 if this process writes the model's index", health.models, health.led_models)
        yield GaugeMetricFamily(f"{_PREFIX}redis_connected", "1 while Redis answers", float(health.connected))
        store = self._indexer.store
        yield GaugeMetricFamily(f"{_PREFIX}table_bytes", "memory of the block tables in bytes", store.bytes)
        yield GaugeMetricFamily(
            f"{_PREFIX}max_blocks",
            "most blocks that this process keeps: a limit, or less where Redis has little memory",
            store.max_blocks,
        )
        if health.redis_max_memory is not None:
            yield GaugeMetricFamily(
                f"{_PREFIX}redis_max_memory_bytes",
                "maxmemory of Redis in bytes; 0 without one",
                health.redis_max_memory,
            )
        if health.loop_lag_seconds is not None:  # not measured yet is not zero
            yield GaugeMetricFamily(
                f"{_PREFIX}loop_lag_seconds", "delay of the event loop, p99", health.loop_lag_seconds
            )
        unidentified = CounterMetricFamily(
            f"{_PREFIX}strangers", "messages of dialing engines that are not in the fleet", labels=["reason"]
        )
        for reason, count in sorted(self._indexer.unidentified_messages().items()):
            unidentified.add_metric([reason], count)
        yield unidentified

    def _counters(self, statuses: Sequence[EngineStatus]) -> Iterator[Metric]:
        totals = self._indexer.departed.with_current(statuses)
        for name, (description, _) in COUNTER_FAMILIES.items():
            family = CounterMetricFamily(f"{_PREFIX}{name}", description, labels=["model"])
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


def _gauges(statuses: Sequence[EngineStatus]) -> Iterator[Metric]:
    families: dict[str, tuple[str, Callable[[EngineStatus], float]]] = {
        "instances": ("instances whose events are read", lambda status: 1),
        "connected": ("instances with a connection", lambda status: status.connected),
        "incomplete": ("instances whose blocks are not all known", lambda status: not status.state.complete),
        "replaying": ("instances that wait for a replay", lambda status: status.replaying),
        "blocks": ("cached blocks of instances", lambda status: status.state.blocks),
        "waiting_orphans": ("blocks that wait for their parent", lambda status: status.state.orphans),
    }
    for name, (description, read) in families.items():
        family = GaugeMetricFamily(f"{_PREFIX}{name}", description, labels=["model"])
        sums: dict[str, float] = {}
        for status in statuses:
            sums[status.model_key] = sums.get(status.model_key, 0.0) + read(status)
        for model_key, value in sorted(sums.items()):
            family.add_metric([model_key], value)
        yield family
    lag = GaugeMetricFamily(
        f"{_PREFIX}lag_seconds",
        "seconds from an engine's timestamp of its last batch until it was applied; the slowest instance",
        labels=["model"],
    )
    slowest: dict[str, float] = {}
    for status in statuses:
        if status.counters.lag_seconds is not None:
            slowest[status.model_key] = max(
                status.counters.lag_seconds, slowest.get(status.model_key, status.counters.lag_seconds)
            )
    for model_key, value in sorted(slowest.items()):
        lag.add_metric([model_key], value)
    yield lag


def _model_flags(name: str, description: str, models: frozenset[str], on: frozenset[str]) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}{name}", description, labels=["model"])
    for model_key in sorted(models):
        family.add_metric([model_key], float(model_key in on))
    return family


def create_app(indexer: Indexer, health: Callable[[], IndexerHealth]) -> web.Application:
    """Returns the application with `/healthz`, `/readyz` and `/metrics`."""

    def ready() -> ProbeResult:
        now = health()
        text = "\n".join([now.startup_blocker or "ready", *now.notes])
        return ProbeResult(not now.startup_blocker, text)

    app = web.Application(middlewares=[refuse_foreign_pages])
    add_probes(app, IndexerMetrics(indexer, health), lambda: ProbeResult(True, "the loop runs"), ready)
    return app
