"""Where the index of a gateway comes from: from Redis, where an indexer writes it; alone, from an indexer in the helper."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.prefix_map.index_view import IndexView
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_kvstore.index.sink import LocalSink
from fairlead_kvstore.index.subscriber import IndexSubscriber
from fairlead_kvstore.indexer.indexer import Indexer
from fairlead_kvstore.reader.engine_info_client import HttpEngineQuery
from fairlead_kvstore.reader.timers import ReaderRuntime
from fairlead_kvstore.redis.link import RedisLink


class IndexSource(Protocol):
    """Mirrors of models, and a word when one changes."""

    def update_fleet(self, fleet: Fleet) -> None:
        """What there is now."""
        ...

    def mirror(self, model_key: str) -> IndexView:
        """What engines told of a model."""
        ...

    def stale_reason(self, model_key: str) -> str | None:
        """Why a mirror is not kept up, in words; None while it is."""
        ...

    def warnings(self) -> list[str]:
        """What is missing or degraded, in words."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


class RedisIndexSource:
    """Follows the index in Redis. The link is somebody else's to start and stop. Make it on the running loop."""

    def __init__(
        self,
        link: RedisLink,
        on_changes: Callable[[str, Sequence[Change]], None],
        on_reload: Callable[[str], None],
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._empty = IndexReplica(limits=limits)
        self._clock = clock
        self._feed = IndexSubscriber(
            link, clock, limits=limits, on_changes=on_changes, on_reload=lambda key, _: on_reload(key)
        )
        self._feed.start()
        self._models: tuple[str, ...] = ()

    def update_fleet(self, fleet: Fleet) -> None:
        """Follow the models that have an engine that tells what it holds."""
        telling = [key for key, ones in fleet.instances.items() if any(one.kv_events is not None for one in ones)]
        self._models = tuple(telling)
        self._feed.set_models(telling)

    def mirror(self, model_key: str) -> IndexView:
        """Empty before the first load. One that is loaded and has no block yet is not that one: it is what blocks will come into."""
        found = self._feed.replica(model_key)
        return self._empty if found is None else found

    def stale_reason(self, model_key: str) -> str | None:
        """Since when and why nothing new is heard."""
        return None if self._feed.stale_since(model_key) is None else self._feed.describe(model_key)

    def warnings(self) -> list[str]:
        """Models whose index is not kept up."""
        found = []
        unled = set(self._feed.models_without_leader())
        if unled:
            found.append(
                f"Redis is there, but no indexer leads {len(unled)} models, so their index is not kept up: {min(unled)}"
            )
        stale = [key for key in self._models if key not in unled and self._feed.stale_since(key) is not None]
        if not stale:
            return found
        return [*found, f"the index of {len(stale)} models is not kept up: {stale[0]}: {self._feed.describe(stale[0])}"]

    async def close(self) -> None:
        """Follow no more."""
        await self._feed.stop()


class LocalIndexSource:
    """Reads the engines' events here. ``on_changes`` hears of each batch after the mirror has it. Make it on the running loop."""

    def __init__(
        self,
        on_changes: Callable[[str, Sequence[Change]], None],
        clock: Clock,
        limits: Limits,
        *,
        secret: bytes,
        environ: Mapping[str, str],
    ) -> None:
        self._sink = LocalSink(limits=limits, on_changes=on_changes)
        self._indexer = Indexer(
            BlockStore(secret=secret, limits=limits),
            self._sink,
            HttpEngineQuery(EngineCredentials(environ, clock.now), limits),
            ReaderRuntime(asyncio.get_running_loop(), clock, random.random, limits),
        )

    def update_fleet(self, fleet: Fleet) -> None:
        """Read the engines of this fleet."""
        self._indexer.update_fleet(fleet)

    def mirror(self, model_key: str) -> IndexView:
        """The same object every time."""
        return self._sink.replica(model_key)

    def stale_reason(self, model_key: str) -> str | None:
        """Never: a slice whose stream is broken off says so itself."""
        del model_key
        return None

    def warnings(self) -> list[str]:
        """Engines that should tell what they hold and do not."""
        mute = [seen for seen in self._indexer.engine_statuses() if seen.problem and seen.events is not None]
        if not mute:
            return []
        return [f"{len(mute)} engines do not tell what they hold: {mute[0].instance}: {mute[0].problem}"]

    async def close(self) -> None:
        """Stop reading."""
        await self._indexer.close()
