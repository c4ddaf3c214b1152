"""The publisher of replication hints in Redis: hot prefixes that should be on another instance too.

Only the gateway that holds the lease of a model's hot prefixes publishes. The key expires if it
stops. `fairlead_kvstore.analysis.replication_hints` defines the hints.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead_kvstore.analysis.replication_hints import ReplicationHint, encode_replication_hints
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink

REHOME_HINT_SECONDS: Final = 5.0
"""Limit: interval of hints for hot prefixes that need another home; a hint expires after three
intervals.
"""

_log = logging.getLogger("fairlead.gateway")


class ReplicationHintPublisher:
    """The publisher of this gateway.

    - models: returns the models whose lease this gateway holds.
    - hints: returns the hints of a model.
    """

    def __init__(
        self,
        link: RedisLink,
        clock: Clock,
        *,
        models: Callable[[], Iterable[str]],
        hints: Callable[[str], Sequence[ReplicationHint]],
    ) -> None:
        self._link = link
        self._clock = clock
        self._models = models
        self._hints = hints
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts on the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(
                run_despite_defects(self._run, _log, "hints of replication"), name="replication hints"
            )

    async def stop(self) -> None:
        """Stops publishing; what was published expires."""
        task, self._task = self._task, None
        await cancel_and_wait(task)

    async def publish(self) -> None:
        """Writes the hints of all models."""
        milliseconds = int(3_000 * REHOME_HINT_SECONDS)
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
            await asyncio.sleep(REHOME_HINT_SECONDS)
            await self.publish()
