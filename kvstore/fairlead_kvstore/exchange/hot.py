"""The table of hot prefixes that all gateways route by: one of them keeps it, the others take it as it is.

How deep a routing key reaches depends on which prefixes many prompts share, and every process counts prompts in another order: two
that disagree about a prefix send it to different homes. So one gateway's count is everybody's. Its table lies in Redis under a key
that lives two seconds and is written twice a second, hence the key is the lease as well: whoever finds none writes its own.
A table has an epoch, which grows with every change of its content and with every change of hands (the wall clock's milliseconds, or
one more than the last that was seen): equal epochs are equal tables, and a decision needs to name no more than that.

Every gateway counts all prompts that it hears of, so that the next keeper's table is like the last one's. A gateway that has not
caught up with the stream does not ask for the lease.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import ResponseError

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead.tasks import ended
from fairlead.units import duration
from fairlead_kvstore import keys
from fairlead_kvstore.exchange.records import HotTable, decode_table
from fairlead_kvstore.record import encode
from fairlead_kvstore.redis import RedisLink
from fairlead_kvstore.servers import Command

_SCRIPT: Final = """
local holder = redis.call('HGET', KEYS[1], 'holder')
if holder and redis.call('PTTL', KEYS[1]) < 0 then
  redis.call('DEL', KEYS[1])
  holder = false
end
if holder and holder ~= ARGV[1] then
  local epoch = redis.call('HGET', KEYS[1], 'epoch')
  if epoch == ARGV[4] then return {holder, epoch} end
  return {holder, epoch, redis.call('HGET', KEYS[1], 'table')}
end
if ARGV[2] == '' then return {} end
if not holder or redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then
  redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'epoch', ARGV[2], 'table', ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {ARGV[1], ARGV[2]}
"""
"""The holder's own word counts; nobody else's while it does, and a key that would never end is nobody's. Replies: nothing (there is
none, and none was offered), who holds it and of which epoch it is, and the table itself where the asker does not have it."""


@dataclass(slots=True)
class Term:
    """What is known of one model's table. ``at``: when Redis last said so, by our monotonic clock; None: never. ``asked``: since
    when we have been asking in vain."""

    epoch: int = 0
    table: HotTable | None = None
    ours: bool = False
    at: float | None = None
    asked: float | None = None
    offered: tuple[int, HotTable] | None = None

    def offer(self, mine: HotTable | None, wall_ms: int) -> tuple[int, HotTable] | None:
        """The table that we would keep, and its epoch: ``mine`` while we keep it, before that the last one that anybody kept, so that
        a change of hands changes no key. None while we have none to offer."""
        if mine is None:
            self.offered = None
        elif not self.ours:
            self.offered = (max(self.epoch + 1, wall_ms), mine if self.table is None else self.table)
        elif mine == self.table:
            self.offered = (self.epoch, mine)
        else:
            self.offered = (self.epoch + 1, mine)
        return self.offered

    def answered(self, ours: bool, epoch: int, table: HotTable | None, now: float) -> bool:
        """Redis has told which table counts; whether it is another one than before."""
        if ours:
            if self.offered is None or self.offered[0] != epoch:
                return False
            table = self.offered[1]
        elif table is None and epoch == self.epoch and self.table is not None:
            table = self.table  # Redis does not send again what the asker has
        elif table is None:
            return False
        changed = epoch != self.epoch or self.table is None
        self.epoch, self.table, self.ours, self.at, self.asked = epoch, table, ours, now, None
        return changed


class HotTables:
    """``active`` are the models with traffic; ``mine`` is this gateway's own count of one (None: not to be offered), which
    is to ``adopt`` the table that it keeps from now on; ``told`` gets (model, epoch, table), epoch 0 and None when the last one is
    too old to go by."""

    def __init__(
        self,
        link: RedisLink,
        name: str,
        clock: Clock,
        *,
        active: Callable[[], Collection[str]],
        mine: Callable[[str], HotTable | None],
        adopt: Callable[[str, HotTable], None],
        told: Callable[[str, int, HotTable | None], None],
        limits: Limits | None = None,
    ) -> None:
        self._link = link
        self._name = name
        self._clock = clock
        self._active = active
        self._mine = mine
        self._adopt = adopt
        self._told = told
        self._limits = limits or Limits()
        self._terms: dict[str, Term] = {}
        self._task: asyncio.Task[None] | None = None
        self.poisoned = 0
        self.refusal = ""

    def start(self) -> None:
        """Begin on the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="hot prefixes")

    async def stop(self) -> None:
        """Leave the tables that we keep to others at once."""
        task, self._task = self._task, None
        await ended(task)
        ours = [keys.hot(model) for model, term in self._terms.items() if term.ours]
        if ours:
            await self._link.run([("DEL", key) for key in ours])

    def term(self, model: str) -> Term | None:
        """What is known of a model's table."""
        return self._terms.get(model)

    def keep_only(self, models: Collection[str]) -> None:
        """Forget models that have left the fleet."""
        for gone in [model for model in self._terms if model not in models]:
            del self._terms[gone]

    @property
    def kept(self) -> int:
        """How many tables this gateway keeps."""
        return sum(term.ours for term in self._terms.values())

    def stale_seconds(self) -> float | None:
        """How old the oldest table is that should have been heard of since; None where none is late."""
        now, lease = self._clock.now(), self._limits.hot_lease_seconds
        ages = [
            now - term.at
            for term in self._terms.values()
            if term.at is not None and term.asked is not None and now - term.asked > lease
        ]
        return max(ages, default=None)

    def notes(self) -> list[str]:
        """What is stale, in words."""
        found = [f"the table of hot prefixes is not shared: {self.refusal}"] if self.refusal else []
        age = self.stale_seconds()
        if age is not None:
            found.append(f"the table of hot prefixes is as of {duration(age)} ago: nobody could tell a newer one")
        return found

    async def _run(self) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(self._limits.hot_ask_seconds)

    async def ask(self) -> None:
        """One round: offer, ask, take over; give up what is too old."""
        now, wall_ms = self._clock.now(), int(self._clock.wall() * 1000)
        models = list(self._active())
        commands: list[Command] = []
        for model in models:
            term = self._terms.setdefault(model, Term())
            if term.asked is None:
                term.asked = now
            commands.append(self._command(model, term, wall_ms))
        replies = await self._link.run(commands) if commands else None
        now = self._clock.now()
        for model, reply in zip(models, replies or (), strict=False):
            if isinstance(reply, ResponseError):
                self.refusal = str(reply).splitlines()[0][:120]
            elif reply:
                self.refusal = ""
                self._answered(model, self._terms[model], reply, now)
        self._give_up(now)

    def _command(self, model: str, term: Term, wall_ms: int) -> Command:
        offer = term.offer(self._mine(model), wall_ms)
        epoch, table = ("", b"") if offer is None else (str(offer[0]), encode(offer[1]))
        lease = int(self._limits.hot_lease_seconds * 1000)
        known = "" if term.table is None else str(term.epoch)
        return ("EVAL", _SCRIPT, 1, keys.hot(model), self._name, epoch, table, known, lease)

    def _answered(self, model: str, term: Term, reply: Any, now: float) -> None:
        try:
            holder, epoch = bytes(reply[0]).decode(errors="replace"), int(reply[1])
        except (IndexError, TypeError, ValueError):
            self.poisoned += 1
            return
        table = None
        if len(reply) > 2:
            table = decode_table(bytes(reply[2] or b""), self._limits.hot_prefixes)
            self.poisoned += table is None
        before = term.ours
        if 0 < epoch < 1 << 62 and term.answered(holder == self._name, epoch, table, now):
            if term.ours and not before and term.table is not None:
                self._adopt(model, term.table)
            self._told(model, term.epoch, term.table)

    def _give_up(self, now: float) -> None:
        active = set(self._active())
        for model, term in list(self._terms.items()):
            if term.table is None or term.at is None:
                continue
            if term.asked is not None and now - term.asked > self._limits.redis_stale_seconds:
                term.table, term.ours = None, False
                self._told(model, 0, None)
            elif model not in active:
                term.ours, term.asked = False, None  # nobody asks for it: whoever wakes first keeps the next one
        for model in [model for model, term in self._terms.items() if term.table is None and model not in active]:
            del self._terms[model]
