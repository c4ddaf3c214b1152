"""The indexer process: fleet, indexer, writer, Redis and probes, from start to shutdown.

The shutdown follows the data. New instances and events end first. Then waiting changes are written
and leases are released, so that another indexer can begin. Redis and the port are closed last.

Probes and Prometheus metrics of the indexer. All values are read at request time.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, FleetSource
from fairlead.runtime import process_tuning
from fairlead.runtime.aiohttp_server import ProbeResult, add_probes, refuse_foreign_pages, serve
from fairlead.runtime.loop_lag import LoopLag
from fairlead.runtime.tasks import cancel_and_wait, first_failure, run_despite_defects
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.instance_blocks import InstanceBlocks
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.fleet_reader import COUNTERS, EngineMember, FleetReader
from fairlead_kvstore.index.format import secret_fingerprint
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.indexer.redis_memory import RedisMemoryBound
from fairlead_kvstore.reader.engine_info_client import HttpEngineQuery
from fairlead_kvstore.reader.reader_context import ReaderRuntime
from fairlead_kvstore.redis.link import RedisLink

_PREFIX = "fairlead_indexer_"
_LAG_SHARE = 0.99


_GAUGES: Final = {
    "instances": "instances whose events are read",
    "connected": "instances with a connection",
    "incomplete": "instances whose blocks are not all known",
    "replaying": "instances that wait for a replay",
    "blocks": "cached blocks of instances",
    "waiting_orphans": "blocks that wait for their parent",
}

_LOG: Final = logging.getLogger("fairlead.indexer")
_LAG_SECONDS: Final = 0.05
_LAG_KEPT: Final = 1_200


def _family(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    description: str,
    by_model: Sequence[tuple[str, float]],
) -> Metric:
    """Returns a family with one value a model."""
    family = kind(f"{_PREFIX}{name}", description, labels=["model"])
    for model_key, value in by_model:
        family.add_metric([model_key], value)
    return family


def _counters(by_model: Mapping[str, Counter[str]]) -> Iterator[Metric]:
    for name, description in COUNTERS.items():
        values = [(key, counts[name]) for key, counts in sorted(by_model.items())]
        yield _family(CounterMetricFamily, name, description, values)
    unreadable = CounterMetricFamily(
        f"{_PREFIX}unreadable", "messages that could not be read", labels=["model", "reason"]
    )
    for key, counts in sorted(by_model.items()):
        for name, count in sorted(counts.items()):
            if name.startswith("unreadable:"):
                unreadable.add_metric([key, name.removeprefix("unreadable:")], count)
    yield unreadable


def _gauges(members: Iterable[tuple[EngineMember, InstanceBlocks]]) -> Iterator[Metric]:
    sums: dict[str, Counter[str]] = {name: Counter() for name in _GAUGES}
    slowest: dict[str, float] = {}
    for member, blocks in members:
        status, key = member.status(blocks), member.model_key
        is_complete, _, _ = blocks.completeness.mark
        values = (1, status.connected, not is_complete, status.replaying, status.blocks, status.orphans)
        for gauge, value in zip(_GAUGES, values, strict=True):
            sums[gauge][key] += value
        if status.lag_seconds is not None:
            slowest[key] = max(status.lag_seconds, slowest.get(key, status.lag_seconds))
    for gauge, description in _GAUGES.items():
        yield _family(GaugeMetricFamily, gauge, description, sorted(sums[gauge].items()))
    text = "seconds from an engine's timestamp of its last batch until it was applied; the slowest instance"
    yield _family(GaugeMetricFamily, "lag_seconds", text, sorted(slowest.items()))


def create_app(service: "IndexerService") -> web.Application:
    """Returns the application with `/healthz`, `/readyz` and `/metrics`."""
    app = web.Application(middlewares=[refuse_foreign_pages])
    add_probes(app, service, lambda: ProbeResult(True, "the loop runs"), lambda: service.readiness())
    return app


class IndexerService(Collector):
    """The indexer process: indexer, writer, Redis link and probes. Create it on the loop that runs
    it. As a collector, it has the metrics by model.

    Why not by instance: thousands of series would help no reader.

    Raises BadInput for an invalid Redis URL.

    redis: the URL of Redis.
    holder: a name that no other process has.
    secret: the key of the block hashes.
    """

    def __init__(
        self,
        source: FleetSource,
        redis: str,
        holder: str,
        secret: bytes,
        environ: Mapping[str, str],
        runtime: ReaderRuntime,
    ) -> None:
        clock, limits = runtime.clock, runtime.limits
        self._source = source
        self._stop = asyncio.Event()
        self._fleet: Fleet | None = None
        self._was_connected = False
        self._lag = LoopLag(_LAG_SECONDS, _LAG_KEPT)
        self._link = RedisLink(redis, clock, limits=limits, name=f"fairlead-indexer-{holder}")
        self._credentials = EngineCredentials(environ, clock.now)
        self.fleet_reader = FleetReader(
            BlockStore(secret=secret, limits=limits),
            self,
            HttpEngineQuery(self._credentials),
            runtime,
            leased=True,
        )
        self._writer = IndexWriter(
            self._link,
            self.fleet_reader,
            clock,
            holder=holder,
            instance_statuses=self.fleet_reader.instance_statuses,
            fingerprint=secret_fingerprint(secret),
            limits=limits,
        )
        self._memory = RedisMemoryBound(
            self._link, self.fleet_reader, self._writer, clock, lambda: len(self._led_models()), limits
        )

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        self._writer.offer(model_key, changes, batches)

    def stop(self) -> None:
        self._stop.set()

    async def run(self, host: str, port: int, announce: Callable[[str], None]) -> None:
        """Runs until ``stop``, with probes and metrics at a port. ``announce`` receives one line
        when that is open. Raises the fleet source's errors, and OSError when the port is taken.
        """
        following: asyncio.Task[None] | None = None
        bounding: asyncio.Task[None] | None = None
        process_tuning.freeze_heap()
        process_tuning.relax_gc()  # events create hundreds of objects a millisecond, without reference cycles
        async with serve(create_app(self), host, port) as address:
            stopped = asyncio.ensure_future(self._stop.wait())
            try:
                announce(f"ready http://{address}")
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
                await self.fleet_reader.close()
                await self._writer.stop()
                await self._link.stop()
                self._lag.stop()

    def readiness(self) -> ProbeResult:
        """Returns whether the start is over, with notes on what does not work."""
        connected, blocker = self._is_connected(), ""
        if self._fleet is None:
            blocker = "waiting for the fleet"
        elif not self._was_connected:
            blocker = f"waiting for Redis: {self._link.state.reason}"
        lines = [
            blocker or "ready",
            *self._source.warnings(),
            *([] if connected else ["Redis is away; changes wait"]),
            *self._memory.warnings(),
            *(f"the index of {key} lags: {problem}" for key, problem in sorted(self._writer.problems().items())),
        ]
        return ProbeResult(not blocker, "\n".join(lines))

    def collect(self) -> Iterator[Metric]:
        """Yields every family of metrics."""
        yield from _counters(self.fleet_reader.store.counts)
        yield from _gauges(self.fleet_reader.members())
        led, models = self._led_models(), () if self._fleet is None else self._fleet.models
        leads = [(key, float(key in led)) for key in sorted(models)]
        yield _family(GaugeMetricFamily, "leads", "1 if this process writes the model's index", leads)
        text = "times that changes were dropped, since too many waited for Redis; the index is then written again"
        yield _family(CounterMetricFamily, "overflows", text, sorted(self._writer.overflows().items()))
        store, loop_lag = self.fleet_reader.store, self._lag.quantile(_LAG_SHARE)
        for name, description, value in (
            ("redis_connected", "1 while Redis answers", float(self._is_connected())),
            ("table_bytes", "memory of the block tables in bytes", store.bytes),
            (
                "max_blocks",
                "most blocks that this process keeps: a limit, or less where Redis has little memory",
                store.max_blocks,
            ),
            ("redis_max_memory_bytes", "maxmemory of Redis in bytes; 0 without one", self._memory.max_memory),
            ("loop_lag_seconds", "delay of the event loop, p99", loop_lag),
        ):
            if value is not None:  # not measured yet is not zero
                yield GaugeMetricFamily(f"{_PREFIX}{name}", description, value)

    def _is_connected(self) -> bool:
        """Returns whether Redis answers."""
        connected = self._link.state.connected
        self._was_connected = self._was_connected or connected
        return connected

    def _led_models(self) -> frozenset[str]:
        models = () if self._fleet is None else self._fleet.models
        return frozenset(key for key in models if self._writer.is_leader(key))

    async def _follow_fleet(self) -> None:
        async for fleet in self._source.watch():
            self._fleet = fleet
            self._credentials.update_fleet(fleet)
            self.fleet_reader.update_fleet(fleet)
            self._writer.set_models(fleet.models)
