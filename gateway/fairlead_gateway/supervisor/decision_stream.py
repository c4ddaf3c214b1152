"""The decision stream: decisions of this gateway in Redis, for other tools.

`offer` appends to a bounded queue and returns. A task empties the queue every 100 ms, in batches of
`BATCH_RECORDS`, and trims what is older than `published_decision_seconds`. While Redis is
unreachable, the queue keeps the newest decisions and counts what it drops. The gateway serves as
before.
"""

import asyncio
import logging
from collections import deque
from itertools import islice
from typing import Any, Final, Protocol

import msgspec
from redis.exceptions import ResponseError

from fairlead.decision import Decision
from fairlead.errors import BadInput, first_line
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead.units import format_duration
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.codec import encode
from fairlead_kvstore.redis.link import RedisLink

PUBLISHED_DECISION_SECONDS: Final = 900.0
"""Limit: older entries of the decision stream are trimmed."""

_log = logging.getLogger("fairlead.gateway")
FLUSH_SECONDS: Final = 0.1
TRIM_SECONDS: Final = 10.0
BATCH_RECORDS: Final = 100
DATA_FIELD: Final = b"d"


class LoggedDecision(Protocol):
    """One decision as the gateway's log keeps it."""

    @property
    def request_id(self) -> str:
        """The request that was routed."""
        ...

    @property
    def wall(self) -> float:
        """Unix seconds of the decision."""
        ...

    @property
    def model_key(self) -> str:
        """The model of the decision, as ``namespace/name``."""
        ...

    @property
    def decision(self) -> Decision:
        """The choice with its reason."""
        ...

    @property
    def attempt(self) -> int:
        """1 for the first choice, more for retries."""
        ...

    @property
    def prompt_tokens(self) -> float:
        """The estimated tokens of the prompt, as used for the choice."""
        ...


class DecisionStream:
    """The stream of one gateway. The caller starts and stops `link`."""

    def __init__(self, link: RedisLink, gateway_id: str, clock: Clock, *, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self.link = link
        self._gateway_id = gateway_id
        self._clock = clock
        self._pending: deque[LoggedDecision] = deque()
        self._trimmed_at: dict[str, float] = {}
        self._last_entry_ms: int | None = None
        self._task: asyncio.Task[None] | None = None
        self.published = 0
        self.dropped = 0
        self.refused = 0
        self._last_refusal = ""

    def offer(self, record: LoggedDecision) -> None:
        """Queues a decision. Drops the oldest one if too many wait."""
        if len(self._pending) >= self._limits.published_decisions_pending:
            self._pending.popleft()
            self.dropped += 1
        self._pending.append(record)

    def start(self) -> None:
        """Starts the task on the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(run_despite_defects(self._run, _log, "decisions"), name="decisions")

    async def stop(self) -> None:
        """Stops the task, and publishes what is queued if Redis is connected."""
        task, self._task = self._task, None
        await cancel_and_wait(task)
        await self.flush()

    @property
    def connected(self) -> bool:
        """True while Redis answers."""
        return self.link.state.connected

    @property
    def pending(self) -> int:
        """The number of decisions not yet published."""
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
        since = format_duration(max(0.0, self._clock.now() - (state.since or 0.0)))
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

    def _add_commands(self, batch: list[LoggedDecision]) -> list[Command]:
        """Returns one XADD per record, and counts those that cannot be encoded as refused."""
        max_entries = self._limits.published_decisions
        commands: list[Command] = []
        for record in batch:
            try:
                name, value = (
                    redis_keys.decisions(record.model_key),
                    encode(published_decision(record, self._gateway_id)),
                )
            except (BadInput, UnicodeError) as error:
                self.refused += 1
                self._last_refusal = type(error).__name__
            else:
                commands.append(("XADD", name, "MAXLEN", "~", max_entries, "*", DATA_FIELD, value))
        return commands

    def _trim_commands(self, batch: list[LoggedDecision]) -> list[Command]:
        """Returns commands that drop old entries and let an unused stream expire."""
        now = self._clock.now()
        commands: list[Command] = []
        for key in {record.model_key for record in batch}:
            if self._last_entry_ms is not None and now - self._trimmed_at.get(key, -TRIM_SECONDS) >= TRIM_SECONDS:
                self._trimmed_at[key] = now
                seconds = PUBLISHED_DECISION_SECONDS
                oldest = max(0, self._last_entry_ms - int(seconds * 1000))
                commands.append(("XTRIM", redis_keys.decisions(key), "MINID", "~", oldest))
                commands.append(("EXPIRE", redis_keys.decisions(key), max(1, int(seconds))))
        return commands

    def _requeue(self, batch: list[LoggedDecision]) -> None:
        """Queues records again, before the others; the oldest are dropped if there is no room.

        Why: some may have been published already, but a duplicate is harmless and a gap is not.
        """
        self._trimmed_at.clear()
        free = self._limits.published_decisions_pending - len(self._pending)
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


MAX_REJECTED: Final = 16


class PublishedDecision(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of the decision stream. ``inputs`` maps a name to (value, age in seconds)."""

    gateway: str
    request: str
    wall: float
    model: str
    chosen: str | None = None
    rule: str = ""
    reason: str = ""
    attempt: int = 1
    prompt_tokens: float = 0.0
    cost_seconds: float | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    inputs: dict[str, tuple[float | None, float | None]] = {}


def published_decision(record: LoggedDecision, gateway_id: str) -> PublishedDecision:
    """Returns the stream entry of a decision.

    It names at most `MAX_REJECTED` of the rejected instances, with their inputs.
    """
    decision = record.decision
    rejected = tuple((instance.id, instance.why) for instance in decision.rejected[:MAX_REJECTED])
    inputs = decision.inputs.items()
    if len(decision.rejected) > MAX_REJECTED:
        shown = {decision.chosen, *(instance for instance, _ in rejected)}
        omitted = {instance.id for instance in decision.rejected} - shown
        inputs = {name: value for name, value in inputs if name.rpartition("/")[0] not in omitted}.items()
    return PublishedDecision(
        gateway=gateway_id,
        request=record.request_id,
        wall=record.wall,
        model=record.model_key,
        chosen=decision.chosen,
        rule=decision.rule,
        reason=decision.reason,
        attempt=record.attempt,
        prompt_tokens=record.prompt_tokens,
        cost_seconds=decision.cost_seconds,
        rejected=rejected,
        inputs={name: (value.value, value.age_seconds) for name, value in islice(inputs, 8 * (MAX_REJECTED + 2))},
    )
