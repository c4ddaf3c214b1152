"""The indexer process: fleet, indexer, writer, Redis and probes, from start to shutdown.

The shutdown follows the data. New instances and events end first. Then waiting changes are written
and leases are released, so that another indexer can begin. Redis and the port are closed last.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.engines.credentials import EngineCredentials
from fairlead.errors import BadInput
from fairlead.fleet.model import Fleet, FleetSource
from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead.runtime.aiohttp_server import serve
from fairlead.runtime.clock import Clock
from fairlead.runtime.loop_lag import LoopLag
from fairlead.runtime.tasks import cancel_and_wait, first_failure, run_despite_defects
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.index.instance_status import secret_fingerprint
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.indexer.indexer import Indexer
from fairlead_kvstore.indexer.metrics import IndexerHealth, create_app
from fairlead_kvstore.indexer.redis_memory import RedisMemoryBound
from fairlead_kvstore.reader.engine_info_client import HttpEngineQuery
from fairlead_kvstore.reader.timers import ReaderRuntime
from fairlead_kvstore.redis.link import RedisLink

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
    events: addresses that engines dial to publish events.
    """

    source: FleetSource
    redis: str
    holder: str
    secret: bytes
    host: str
    port: int
    events: Sequence[str] = ()


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
            listen=config.events,
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
