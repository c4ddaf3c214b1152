"""Tells in Redis which hot prefixes want another home (``fairlead_kvstore.analysis.replication_hints``): who keeps
the table of hot prefixes does,
so one of the gateways, every few seconds, under a key that goes by itself when nobody does."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_kvstore.analysis.replication_hints import ReplicationHint, encode_replication_hints
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink


class ReplicationHintPublisher:
    """``models`` are those whose table is ours; ``hints`` are what is to be told of one."""

    def __init__(
        self,
        link: RedisLink,
        clock: Clock,
        *,
        models: Callable[[], Iterable[str]],
        hints: Callable[[str], Sequence[ReplicationHint]],
        limits: Limits,
    ) -> None:
        self._link = link
        self._clock = clock
        self._models = models
        self._hints = hints
        self._limits = limits
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin on the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="replication hints")

    async def stop(self) -> None:
        """Tell no more; what was told is over in a while."""
        task, self._task = self._task, None
        await cancel_and_wait(task)

    async def publish(self) -> None:
        """Once."""
        milliseconds = int(3_000 * self._limits.rehome_hint_seconds)
        commands: list[Command] = [
            (
                "SET",
                redis_keys.replication_hints(model),
                encode_replication_hints(list(self._hints(model)), self._clock.wall()),
                "PX",
                milliseconds,
            )
            for model in self._models()
        ]
        if commands:
            await self._link.run(commands)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._limits.rehome_hint_seconds)
            await self.publish()
