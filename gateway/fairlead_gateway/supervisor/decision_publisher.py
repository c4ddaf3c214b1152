"""The decision stream: decisions of this gateway in Redis, for other tools.

`offer` appends to a bounded queue and returns. A task empties the queue every 100 ms, in batches of
`BATCH_RECORDS`, and trims what is older than `published_decision_seconds`. While Redis is
unreachable, the queue keeps the newest decisions and counts what it drops. The gateway serves as
before.
"""

import asyncio
import logging
from collections import deque
from typing import Any, Final

from redis.exceptions import ResponseError

from fairlead.errors import BadInput, first_line
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead.units import format_duration
from fairlead_gateway.messages import PUBLISHED_DECISIONS_PENDING
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink

PUBLISHED_DECISION_SECONDS: Final = 900.0
"""Limit: older entries of the decision stream are trimmed."""
PUBLISHED_DECISIONS: Final = 10_000
"""Limit: entries of one model's decision stream in Redis, about 1 kB each."""

_log = logging.getLogger("fairlead.gateway")
FLUSH_SECONDS: Final = 0.1
TRIM_SECONDS: Final = 10.0
BATCH_RECORDS: Final = 100
DATA_FIELD: Final = b"d"


class DecisionPublisher:
    """The stream of one gateway. The caller starts and stops `link`."""

    def __init__(
        self,
        link: RedisLink,
        clock: Clock,
        *,
        max_entries: int = PUBLISHED_DECISIONS,
        max_pending: int = PUBLISHED_DECISIONS_PENDING,
    ) -> None:
        self._max_entries, self._max_pending = max_entries, max_pending
        self.link = link
        self._clock = clock
        self._pending: deque[tuple[str, bytes]] = deque()
        self._trimmed_at: dict[str, float] = {}
        self._last_entry_ms: int | None = None
        self._task: asyncio.Task[None] | None = None
        self.published = 0
        self.dropped = 0
        self.refused = 0
        self._last_refusal = ""

    def offer(self, model_key: str, entry: bytes) -> None:
        """Queues a decision as an entry of the stream. Drops the oldest one if too many wait."""
        if len(self._pending) >= self._max_pending:
            self._pending.popleft()
            self.dropped += 1
        self._pending.append((model_key, entry))

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(run_despite_defects(self._run, _log, "decisions"), name="decisions")

    async def stop(self) -> None:
        """Stops the task, and publishes what is queued if Redis is connected."""
        task, self._task = self._task, None
        await cancel_and_wait(task)
        await self.flush()

    @property
    def connected(self) -> bool:
        return self.link.state.connected

    @property
    def pending(self) -> int:
        return len(self._pending)

    def status(self) -> str:
        """Returns the state of the link and what was published, dropped and refused, as text."""
        text = f"Redis {self.link.describe()}; {self.published} decisions published"
        if self.dropped:
            text += f", {self.dropped} dropped while it was away"
        if self.refused:
            text += f", {self.refused} refused ({self._last_refusal})"
        return text

    def warning(self) -> str | None:
        """Returns what does not work now and its effect; None if all is well."""
        state = self.link.state
        if state.connected:
            return f"Redis refuses writes ({self._last_refusal})" if self._last_refusal else None
        since = format_duration(max(0.0, self._clock.now() - state.since))
        return f"Redis is away for {since} ({state.reason}): load, prefixes and decisions are not shared with other gateways"

    async def flush(self) -> None:
        """Publishes the queue in batches while Redis is connected.

        A batch without a reply is queued again. Decisions that Redis refuses are counted and lost.
        """
        while self.link.state.connected:
            batch = [self._pending.popleft() for _ in range(min(BATCH_RECORDS, len(self._pending)))]
            entries = self._add_commands(batch)
            commands = entries + self._trim_commands(batch)
            if not commands:
                return
            try:
                replies = await self.link.run(commands)
            except asyncio.CancelledError:
                self._requeue(batch)
                raise
            if replies is None:
                self._requeue(batch)
                return
            self._count_replies(len(entries), replies)
            if len(batch) < BATCH_RECORDS:
                return

    async def _run(self) -> None:
        while True:
            await self.link.wait_connected()
            await self.flush()
            await asyncio.sleep(FLUSH_SECONDS)

    def _add_commands(self, batch: list[tuple[str, bytes]]) -> list[Command]:
        """Returns one XADD per decision, and counts those without a valid key as refused."""
        max_entries = self._max_entries
        commands: list[Command] = []
        for model_key, value in batch:
            try:
                name = redis_keys.decisions(model_key)
            except (BadInput, UnicodeError) as error:
                self.refused += 1
                self._last_refusal = type(error).__name__
            else:
                commands.append(("XADD", name, "MAXLEN", "~", max_entries, "*", DATA_FIELD, value))
        return commands

    def _trim_commands(self, batch: list[tuple[str, bytes]]) -> list[Command]:
        """Returns commands that drop old entries and let an unused stream expire."""
        now = self._clock.now()
        commands: list[Command] = []
        for key in {model_key for model_key, _ in batch}:
            if self._last_entry_ms is not None and now - self._trimmed_at.get(key, -TRIM_SECONDS) >= TRIM_SECONDS:
                self._trimmed_at[key] = now
                seconds = PUBLISHED_DECISION_SECONDS
                oldest = max(0, self._last_entry_ms - int(seconds * 1000))
                commands.append(("XTRIM", redis_keys.decisions(key), "MINID", "~", oldest))
                commands.append(("EXPIRE", redis_keys.decisions(key), max(1, int(seconds))))
        return commands

    def _requeue(self, batch: list[tuple[str, bytes]]) -> None:
        """Queues records again, before the others; the oldest are dropped if there is no room.

        Why: some may have been published already, but a duplicate is harmless and a gap is not.
        """
        self._trimmed_at.clear()
        free = self._max_pending - len(self._pending)
        requeued = batch[max(0, len(batch) - free) :] if free > 0 else []
        self.dropped += len(batch) - len(requeued)
        self._pending.extendleft(reversed(requeued))

    def _count_replies(self, entries: int, replies: list[Any]) -> None:
        refusals = [reply for reply in replies if isinstance(reply, ResponseError)]
        refused = sum(isinstance(reply, ResponseError) for reply in replies[:entries])
        self.refused += refused
        self.published += entries - refused
        if refusals:
            self._last_refusal = first_line(refusals[0])
            return
        self._last_refusal = ""
        if entries:
            self._last_entry_ms = int(replies[entries - 1].partition(b"-")[0])
