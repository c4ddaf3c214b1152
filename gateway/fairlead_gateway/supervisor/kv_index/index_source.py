"""The sources of a gateway's KV-cache index: Redis, or else an indexer in the supervisor."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_kvstore.index.sink import LocalSink
from fairlead_kvstore.index.subscriber import IndexSubscriber
from fairlead_kvstore.indexer.indexer import Indexer
from fairlead_kvstore.reader.engine_info_client import HttpEngineQuery
from fairlead_kvstore.reader.reader_context import ReaderRuntime
from fairlead_kvstore.redis.link import RedisLink


class IndexSource(Protocol):
    """A source of index replicas by model, with callbacks when one changes."""

    def update_fleet(self, fleet: Fleet, indexed_models: Sequence[str]) -> None:
        """Takes over a new fleet, and which of its models are indexed."""

    def mirror(self, model_key: str) -> IndexReplica:
        """Returns the index replica of a model: what its engines reported."""

    def stale_reason(self, model_key: str) -> str | None:
        """Returns why a replica is not up to date; None while it is."""

    def warnings(self) -> list[str]:
        """Returns texts that say what is missing or degraded."""

    async def close(self) -> None:
        """Stops reading."""


class RedisIndexSource:
    """A source that follows the index in Redis. To be created on the running loop.

    link: started and stopped by the caller.
    """

    def __init__(
        self,
        link: RedisLink,
        on_changes: Callable[[str, Sequence[Change]], None],
        on_reload: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._empty = IndexReplica()
        self._clock = clock
        self._feed = IndexSubscriber(link, clock, on_changes=on_changes, on_reload=lambda key, _: on_reload(key))
        self._feed.start()
        self._models: tuple[str, ...] = ()

    def update_fleet(self, fleet: Fleet, indexed_models: Sequence[str]) -> None:
        """Reads these models from now on."""
        del fleet
        self._models = tuple(indexed_models)
        self._feed.set_models(self._models)

    def mirror(self, model_key: str) -> IndexReplica:
        """Returns the replica of a model. Before its first load that is a shared empty one.

        A loaded replica without blocks is not the shared one: blocks will be added to it.
        """
        replica = self._feed.replica(model_key)
        return self._empty if replica is None else replica

    def stale_reason(self, model_key: str) -> str | None:
        """Returns since when and why the replica is not up to date; None if it is."""
        return None if self._feed.stale_since(model_key) is None else self._feed.describe(model_key)

    def warnings(self) -> list[str]:
        """Returns texts that name models whose index is not up to date."""
        warnings = []
        unled = set(self._feed.models_without_leader())
        if unled:
            warnings.append(
                f"Redis is there, but no indexer leads {len(unled)} models, so their index is not kept up: {min(unled)}"
            )
        stale = [key for key in self._models if key not in unled and self._feed.stale_since(key) is not None]
        if stale:
            reason = self._feed.describe(stale[0])
            warnings.append(f"the index of {len(stale)} models is not kept up: {stale[0]}: {reason}")
        return warnings

    async def close(self) -> None:
        """Stops reading Redis."""
        await self._feed.stop()


class LocalIndexSource:
    """A source that reads the engines' KV events itself. To be created on the running loop.

    on_changes: called with each batch after the replica has it.
    """

    def __init__(
        self,
        on_changes: Callable[[str, Sequence[Change]], None],
        clock: Clock,
        limits: Limits,
        *,
        secret: bytes,
        environ: Mapping[str, str],
    ) -> None:
        self._sink = LocalSink(on_changes=on_changes)
        self._credentials = EngineCredentials(environ, clock.now)
        self._indexer = Indexer(
            BlockStore(secret=secret, limits=limits),
            self._sink,
            HttpEngineQuery(self._credentials),
            ReaderRuntime(asyncio.get_running_loop(), clock, random.random, limits),
        )

    def update_fleet(self, fleet: Fleet, indexed_models: Sequence[str]) -> None:
        """Reads the engines of this fleet from now on."""
        del indexed_models
        self._credentials.update_fleet(fleet)
        self._indexer.update_fleet(fleet)

    def mirror(self, model_key: str) -> IndexReplica:
        """Returns the replica of a model, always the same object."""
        return self._sink.replica(model_key)

    def stale_reason(self, model_key: str) -> str | None:
        """Returns None: an instance whose stream is broken is marked incomplete in the replica."""
        del model_key
        return None

    def warnings(self) -> list[str]:
        """Returns a text that names engines whose KV events are configured and do not arrive."""
        statuses = self._indexer.instance_statuses().items()
        silent = [
            f"{name}: {status.trouble}" for name, status in statuses if status.trouble and status.events is not None
        ]
        return [f"{len(silent)} engines do not report what they cache: {silent[0]}"] if silent else []

    async def close(self) -> None:
        """Stops reading engines."""
        await self._indexer.close()
