"""The indexer process: fleet, indexer, writer, Redis and probes, from start to shutdown.

The shutdown follows the data. New instances and events end first. Then waiting changes are written
and leases are released, so that another indexer can begin. Redis and the port are closed last.

Probes and Prometheus metrics of the indexer. All values are read at request time.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead.engines.credentials import EngineCredentials
from fairlead.errors import BadInput
from fairlead.fleet.model import Fleet, FleetSource
from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead.runtime.aiohttp_server import ProbeResult, add_probes, refuse_foreign_pages, serve
from fairlead.runtime.clock import Clock
from fairlead.runtime.loop_lag import LoopLag
from fairlead.runtime.tasks import cancel_and_wait, first_failure, run_despite_defects
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.index.instance_status import secret_fingerprint
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.indexer.indexer import COUNTER_FAMILIES, EngineStatus, Indexer
from fairlead_kvstore.indexer.redis_memory import RedisMemoryBound
from fairlead_kvstore.reader.engine_info_client import HttpEngineQuery
from fairlead_kvstore.reader.timers import ReaderRuntime
from fairlead_kvstore.redis.link import RedisLink

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


_LOG: Final = logging.getLogger("fairlead.indexer")
_LAG_SECONDS: Final = 0.05
_LAG_KEPT: Final = 1_200


@dataclass(frozen=True, slots=True)
class IndexerConfig:
    """The configuration of an indexer.

    source: the fleet.
    redis: URL of Redis.
    holder: a name that no other process has.
    secret: the key of the block hashes.
    host, port: address of probes and metrics.
    """

    source: FleetSource
    redis: str
    holder: str
    secret: bytes
    host: str
    port: int


class IndexerService:
    """The indexer process: indexer, writer, Redis link and probes. Create it on the loop that runs
    it.

    Raises BadInput for an invalid Redis URL or address.

    announce: receives one line when the port is open.
    """

    def __init__(
        self,
        config: IndexerConfig,
        environ: Mapping[str, str],
        clock: Clock,
        random: Callable[[], float],
        *,
        announce: Callable[[str], None],
        limits: Limits,
    ) -> None:
        self._config = config
        self._announce = announce
        self._stop = asyncio.Event()
        self._fleet: Fleet | None = None
        self._was_connected = False
        self._lag = LoopLag(_LAG_SECONDS, _LAG_KEPT)
        self._link = RedisLink(config.redis, clock, limits=limits, name=f"fairlead-indexer-{config.holder}")
        self._credentials = EngineCredentials(environ, clock.now)
        self.indexer = Indexer(
            BlockStore(secret=config.secret, limits=limits),
            self,
            HttpEngineQuery(self._credentials),
            ReaderRuntime(asyncio.get_running_loop(), clock, random, limits),
            leased=True,
        )
        self._writer = IndexWriter(
            self._link,
            self.indexer,
            clock,
            holder=config.holder,
            instance_statuses=self.indexer.instance_statuses,
            fingerprint=secret_fingerprint(config.secret),
            limits=limits,
        )
        self._memory = RedisMemoryBound(
            self._link, self.indexer, self._writer, clock, lambda: len(self._led_models()), limits
        )

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        """Passes changes to the writer."""
        self._writer.offer(model_key, changes, batches)

    def is_backlogged(self, model_key: str) -> bool:
        """Returns whether too many changes of a model wait in the writer."""
        return self._writer.is_backlogged(model_key)

    def stop(self) -> None:
        """Requests the shutdown, which ``run`` then performs."""
        self._stop.set()

    async def run(self) -> None:
        """Runs until ``stop``. Raises the fleet source's errors, and OSError when the port is
        taken.
        """
        following: asyncio.Task[None] | None = None
        bounding: asyncio.Task[None] | None = None
        process_tuning.freeze_heap()
        process_tuning.relax_gc()  # events create hundreds of objects a millisecond, without reference cycles
        async with serve(create_app(self.indexer, self.health), self._config.host, self._config.port) as address:
            stopped = asyncio.ensure_future(self._stop.wait())
            try:
                self._announce(f"ready http://{address}")
                self._lag.start()
                self._link.start()
                self._writer.start()
                bounding = asyncio.ensure_future(run_despite_defects(self._memory.run, _LOG, "the memory of Redis"))
                following = asyncio.ensure_future(self._follow_fleet())
                error = await first_failure([following], stopped)
                if error is not None:
                    raise error
            finally:
                await cancel_and_wait(stopped)
                await cancel_and_wait(following)
                await cancel_and_wait(bounding)
                await self.indexer.close()
                await self._writer.stop()
                await self._link.stop()
                self._lag.stop()

    def health(self) -> IndexerHealth:
        """Returns the current health."""
        models = frozenset() if self._fleet is None else frozenset(self._fleet.models)
        connected = self._link.state.connected
        self._was_connected = self._was_connected or connected
        startup_blocker = ""
        if self._fleet is None:
            startup_blocker = "waiting for the fleet"
        elif not self._was_connected:
            startup_blocker = f"waiting for Redis: {self._link.state.reason}"
        return IndexerHealth(
            startup_blocker,
            led_models=self._led_models(),
            models=models,
            connected=connected,
            redis_max_memory=self._memory.max_memory,
            loop_lag_seconds=self._lag.quantile(0.99),
            notes=[
                *self._config.source.warnings(),
                *([] if connected else ["Redis is away; changes wait"]),
                *self._memory.warnings(),
                *(f"the writer is behind with {key}: its engines pause" for key in self._writer.backlogged_models()),
            ],
        )

    def _led_models(self) -> frozenset[str]:
        models = () if self._fleet is None else self._fleet.models
        return frozenset(key for key in models if self._writer.is_leader(key))

    async def _follow_fleet(self) -> None:
        async for fleet in self._config.source.watch():
            self._fleet = fleet
            self._credentials.update_fleet(fleet)
            self.indexer.update_fleet(fleet)
            self._writer.set_models(_indexable_models(fleet))


def _indexable_models(fleet: Fleet) -> list[str]:
    """Returns the models with a valid Redis key; logs the others with each fleet."""
    from fairlead_kvstore.index import redis_keys

    found = []
    for key in fleet.models:
        try:
            redis_keys.decisions(key)
        except BadInput as error:
            _LOG.warning("cannot index model %r: %s", key, error.message)
        else:
            found.append(key)
    return found
