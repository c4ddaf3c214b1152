"""The reader of engines' KV events in a gateway: the blocks of all indexed models.

With a Redis, a model is read from what an indexer left there: its blocks, and the position in each
engine's stream. The engine replays what came later, or the blocks are dropped.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from fairlead.engines.credentials import EngineCredentials
from fairlead.errors import BadInput
from fairlead.fleet.model import Fleet
from fairlead.runtime.tasks import KeyedTasks
from fairlead_kvstore.blockstore.store import BlockStore, ModelBlocks
from fairlead_kvstore.fleet_reader import ChangeSink, FleetReader
from fairlead_kvstore.index.format import secret_fingerprint
from fairlead_kvstore.index.recovery import RecoveredIndex, recover_index
from fairlead_kvstore.reader.engine_info_client import HttpEngineQuery
from fairlead_kvstore.reader.reader_context import ReaderRuntime

if TYPE_CHECKING:  # without Redis, its client is not loaded
    from fairlead_kvstore.redis.link import RedisLink

_LOG: Final = logging.getLogger("fairlead.gateway")
_CONNECT_SECONDS: Final = 3.0
"""The longest wait for Redis before a model is read without what an indexer left."""
_MAX_CONCURRENT_RECOVERIES: Final = 2


class EventReader:
    """The blocks of indexed models, read from their engines.

    - sink: takes each batch of changes, which the blocks already have.
    - on_restored: called when a model is read from what an indexer left.
    - link: of Redis, started and stopped by the caller; None without a Redis.
    - other_secret: models of which an indexer with another secret left an index.
    """

    def __init__(
        self,
        sink: ChangeSink,
        on_restored: Callable[[str], None],
        runtime: ReaderRuntime,
        *,
        secret: bytes,
        environ: Mapping[str, str],
        link: "RedisLink | None",
    ) -> None:
        self._on_restored = on_restored
        self._clock = runtime.clock
        self._link = link
        self._fingerprint = secret_fingerprint(secret)
        self._credentials = EngineCredentials(environ, runtime.clock.now)
        self._store = BlockStore(secret=secret, limits=runtime.limits)
        self._reader = FleetReader(self._store, sink, HttpEngineQuery(self._credentials), runtime, leased=True)
        self._models: set[str] = set()
        self._starts = KeyedTasks()
        self._free = asyncio.Semaphore(_MAX_CONCURRENT_RECOVERIES)
        self.other_secret: set[str] = set()

    def update_fleet(self, fleet: Fleet, indexed_models: Sequence[str]) -> None:
        """Reads the engines of these models from now on, in a moment."""
        self._credentials.update_fleet(fleet)
        self._reader.update_fleet(fleet)
        for key in self._models - set(indexed_models):
            self._models.discard(key)
            self.other_secret.discard(key)
            self._reader.stop_model(key)
        for key in indexed_models:
            if key not in self._models:
                self._models.add(key)
                self._starts.start(key, partial(self._start_model, key))

    def blocks(self, model_key: str) -> ModelBlocks:
        return self._store.model(model_key)

    def warnings(self) -> list[str]:
        """Returns a text that names engines whose KV events are configured and do not arrive."""
        found = self._reader.instance_statuses()
        silent = [(name, status.trouble) for name, status in found.items() if status.trouble and status.events]
        if not silent:
            return []
        name, trouble = silent[0]
        return [f"{len(silent)} engines do not report what they cache: {name}: {trouble}"]

    async def close(self) -> None:
        await self._starts.cancel()
        await self._reader.close()

    async def _start_model(self, key: str) -> None:
        recovered = await self._recover(key)
        if key in self._models:
            self._reader.start_model(key, recovered)
            if recovered.instances:
                self._on_restored(key)

    async def _recover(self, key: str) -> RecoveredIndex:
        """Returns what an indexer left of a model; nothing of it where Redis does not answer."""
        link, found = self._link, None
        if link is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await link.wait_connected()
            offset = self._clock.wall() - self._clock.now()
            try:
                async with self._free:
                    found = await recover_index(link, key, offset, fingerprint=self._fingerprint)
            except BadInput as error:
                _LOG.warning("what an indexer left of %r cannot be used: %s", key, error.message)
            except Exception:  # noqa: BLE001  # it is logged
                _LOG.exception("%s: a defect stopped the recovery of its index", key)
        if found is not None and found.has_other_secret:
            self.other_secret.add(key)
        return found or RecoveredIndex()
