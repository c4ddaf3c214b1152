"""A reader that loads models' indexes from Redis again and again, as `fairlead index` does once."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, Final

from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_cli.exit_codes import IndexUnreachable
from fairlead_cli.index.loaded_index import LoadedIndex
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index import redis_keys

_PAUSE_SECONDS: Final = 0.02


class IndexReader:
    """The last loaded index of each model.

    link: with the ``run`` of a ``RedisLink``; the owner starts and stops it.
    """

    def __init__(self, link: Any, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._models: dict[str, LoadedIndex | None] = {}
        self._problems: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    def set_models(self, model_keys: Iterable[str]) -> None:
        """Sets the models to load. Raises BadInput for an invalid name."""
        for key in model_keys:
            redis_keys.index_keys(key)
            self._models.setdefault(key, None)

    def index(self, model_key: str) -> LoadedIndex | None:
        return self._models.get(model_key)

    def problem(self, model_key: str) -> str:
        """Returns why the last load failed, or what it could not read; empty if it is whole."""
        index = self._models.get(model_key)
        unreadable = () if index is None else sorted(index.unreadable)
        return self._problems.get(model_key, "not loaded yet") or ", ".join(
            f"{name} is unreadable" for name in unreadable
        )

    async def step(self) -> None:
        """Loads the index of each model."""
        for key in self._models:
            now = self._clock.now()
            index = LoadedIndex()
            try:
                await index.load(self._link, key, self._clock.wall() - now)
                self._models[key] = index
                self._problems[key] = ""
            except UnreadableError as error:
                self._problems[key] = error.message
            except IndexUnreachable:
                self._problems[key] = "Redis is away"

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Stops loading."""
        task, self._task = self._task, None
        with contextlib.suppress(Exception):
            await cancel_and_wait(task)

    async def _run(self) -> None:
        while True:
            await self.step()
            await asyncio.sleep(_PAUSE_SECONDS)
