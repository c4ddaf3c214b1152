"""The search for KV events of which the fleet says nothing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Final

from fairlead.errors import FairleadError
from fairlead.fleet.model import Instance
from fairlead.runtime.tasks import KeyedTasks, run_despite_defects
from fairlead_kvstore.reader.endpoints import endpoints_from_answer
from fairlead_kvstore.reader.engine_info_client import EVENT_SOURCES_PATH, EngineQuery
from fairlead_kvstore.reader.namespace_slots import NamespaceSlots

_LOG: Final = logging.getLogger("fairlead.gateway")
EVENT_SEARCH_SECONDS: Final = 300.0
"""Limit: longest pause between queries to a model's engines whether they publish KV events."""

_FIRST_PAUSE_SECONDS: Final = 1.0
_MAX_CONCURRENT_QUERIES: Final = 4


class EventDiscovery:
    """Finds the models whose engines publish KV events, although the fleet does not say so.

    One engine of each model is queried, the next one after a pause that doubles each time. A model
    is found once.

    Why: most fleets state it, and most other engines publish nothing. The modules that read events
    take 20 MB, so a gateway has none of them before it has found something to read.
    """

    def __init__(
        self,
        query: EngineQuery,
        on_found: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._query = query
        self._on_found = on_found
        self._sleep = sleep
        self._slots = NamespaceSlots(_MAX_CONCURRENT_QUERIES)
        self._searches = KeyedTasks()
        self._instances: Mapping[str, Sequence[Instance]] = {}

    def set_models(self, instances: Mapping[str, Sequence[Instance]]) -> None:
        """Sets the models to search, and their instances."""
        self._instances = instances
        for key in instances:
            search = partial(run_despite_defects, partial(self._search, key), _LOG, "search for KV events")
            self._searches.start(key, search)

    async def stop(self) -> None:
        await self._searches.cancel()

    async def _search(self, key: str) -> None:
        """Queries engines of a model in turn until one publishes events or the model is gone."""
        pause = _FIRST_PAUSE_SECONDS
        for number in count():
            instances = [instance for instance in self._instances.get(key, ()) if not instance.leaves_cluster]
            if key not in self._instances:
                return
            if instances and await self._publishes(instances[number % len(instances)]):
                self._on_found(key)
                return
            await self._sleep(pause)
            pause = min(EVENT_SEARCH_SECONDS, pause * 2.0)

    async def _publishes(self, instance: Instance) -> bool:
        query = partial(self._query, instance, EVENT_SOURCES_PATH)
        try:
            endpoints_from_answer(await self._slots.run(instance.namespace, query), instance)
        except FairleadError:
            return False
        return True
