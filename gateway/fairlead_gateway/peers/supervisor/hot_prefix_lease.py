"""The shared table of hot prefixes: one gateway maintains it, the others use it unchanged.

The length of a routing key depends on which prefixes many prompts share, and every process counts
prompts in another order. Two that disagree send a prefix to different homes. So the count of one
gateway is used by all. Its table lies in Redis under a key that expires after two seconds and is
written twice a second. The key is the lease: a gateway that finds none writes its own table.

A table has an epoch, which grows with every change of content or owner. It is the wall clock's
milliseconds, or one more than the last known epoch. Equal epochs mean equal tables.

Every gateway counts the prompts of all gateways, so the next owner's table is similar. A gateway
that has not caught up with the stream does not request the lease.

The supervisor's count of hot prefixes and of the prompts that begin with each.

From this count, a gateway makes its version of the table by which all gateways route.

The supervisor counts the dispatches of its workers and of other gateways, as a router does. Prompts
for instances that only prefill are counted apart, since these instances are homes of their own.
"""

import asyncio
import logging
from array import array
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import ResponseError

from fairlead.errors import first_line
from fairlead.fleet.model import Fleet, InstanceState, Role
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead.units import format_duration
from fairlead_gateway.peers.peer_messages import HotPrefixTable, decode_table
from fairlead_gateway.routing.prefix.hot_prefixes import HotPrefixes
from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain, unpack_hashes
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.codec import encode
from fairlead_kvstore.redis.link import REDIS_STALE_SECONDS, RedisLink

HOT_PREFIXES: Final = 10_000
"""Limit: entries of the hot-prefix table of one model."""

HOT_PREFIX_POLL_SECONDS: Final = 0.5
"""Limit: interval at which the hot-prefix table is written or read."""
HOT_PREFIX_LEASE_SECONDS: Final = 2.0
"""Limit: a gateway that has not written the table for this long loses its lease."""

_log = logging.getLogger("fairlead.gateway")
_LEASE_SCRIPT: Final = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
local holder = redis.call('HGET', KEYS[1], 'holder')
local left = redis.call('PTTL', KEYS[1])
local number = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '')
local valid = number and number > 0 and number < tonumber(ARGV[6]) and left >= 0 and left <= 4 * tonumber(ARGV[5])
if holder and not valid then
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
"""The owner's table counts while its key lives. A key without expiry has no owner, nor one that
expires much later than any gateway sets, nor one whose epoch is too large. Replies: nothing (no
table, none offered), owner and epoch, and the table if the caller does not have it.
"""
_MAX_EPOCH: Final = 4_000_000_000_000_000
"""Milliseconds beyond any clock. A larger epoch would leave no room for the next owner's."""


@dataclass(slots=True)
class TableLease:
    """The state of one model's table.

    - confirmed_at: monotonic time of Redis' last reply about it; None: never.
    - asking_since: monotonic time of the first request without a reply; None: none is open.
    """

    epoch: int = 0
    table: HotPrefixTable | None = None
    is_ours: bool = False
    confirmed_at: float | None = None
    asking_since: float | None = None
    last_offer: tuple[int, HotPrefixTable] | None = None

    def make_offer(self, local_table: HotPrefixTable | None, wall_ms: int) -> tuple[int, HotPrefixTable] | None:
        """Returns the epoch and table that this gateway offers to maintain; None without one.

        An owner offers its local table. Other gateways offer the last table of any owner, if they
        know one. So a change of owner changes no key.
        """
        if local_table is None:
            self.last_offer = None
        elif not self.is_ours:
            self.last_offer = (max(self.epoch + 1, wall_ms), local_table if self.table is None else self.table)
        elif local_table == self.table:
            self.last_offer = (self.epoch, local_table)
        else:
            self.last_offer = (self.epoch + 1, local_table)
        return self.last_offer

    def on_reply(self, is_ours: bool, epoch: int, table: HotPrefixTable | None, now: float) -> bool:
        """Applies the owner's table from Redis' reply; returns True if it is new."""
        if is_ours:
            if self.last_offer is None or self.last_offer[0] != epoch:
                return False
            table = self.last_offer[1]
        elif table is None and epoch == self.epoch and self.table is not None:
            table = self.table  # Redis does not resend a known table
        elif table is None:
            return False
        changed = epoch != self.epoch or self.table is None
        self.epoch, self.table, self.is_ours, self.confirmed_at, self.asking_since = epoch, table, is_ours, now, None
        return changed


@dataclass(frozen=True, slots=True)
class LeaseHooks:
    """The callbacks of the leases.

    - active_models: returns the models with traffic.
    - local_table: returns the table that this gateway counted; None: there is none to offer.
    - on_acquired: called with model and table when this gateway becomes the owner.
    - on_table: called with model, epoch and table; epoch 0 and None if the last one is too old.
    """

    active_models: Callable[[], Collection[str]]
    local_table: Callable[[str], HotPrefixTable | None]
    on_acquired: Callable[[str, HotPrefixTable], None]
    on_table: Callable[[str, int, HotPrefixTable | None], None]


class HotPrefixLeases:
    """The leases of this gateway on the hot-prefix tables of all models."""

    def __init__(self, link: RedisLink, name: str, clock: Clock, hooks: LeaseHooks) -> None:
        self._link = link
        self._name = name
        self._clock = clock
        self._hooks = hooks
        self._leases: dict[str, TableLease] = {}
        self._task: asyncio.Task[None] | None = None
        self.undecodable = 0
        self.last_error = ""

    def start(self) -> None:
        """Starts the task on the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(run_despite_defects(self._run, _log, "hot prefixes"), name="hot prefixes")

    async def stop(self) -> None:
        """Stops the task and releases the tables that this gateway maintains."""
        task, self._task = self._task, None
        await cancel_and_wait(task)
        ours = [redis_keys.hot_prefixes(model) for model, lease in self._leases.items() if lease.is_ours]
        if ours:
            await self._link.run([("DEL", key) for key in ours])

    def lease(self, model: str) -> TableLease | None:
        """Returns the state of a model's table; None if unknown, and the model has no traffic."""
        return self._leases.get(model)

    def retain(self, models: Collection[str]) -> None:
        """Forgets models that left the fleet."""
        for departed in [model for model in self._leases if model not in models]:
            del self._leases[departed]

    @property
    def owned_tables(self) -> int:
        """The number of tables that this gateway maintains."""
        return sum(term.is_ours for term in self._leases.values())

    def stale_seconds(self) -> float | None:
        """Returns the age of the oldest table that is late; None if none is."""
        now, lease_seconds = self._clock.now(), HOT_PREFIX_LEASE_SECONDS
        ages = [
            now - lease.confirmed_at
            for lease in self._leases.values()
            if lease.confirmed_at is not None
            and lease.asking_since is not None
            and now - lease.asking_since > lease_seconds
        ]
        return max(ages, default=None)

    def warnings(self) -> list[str]:
        """Returns texts that say which tables are stale, and why Redis refuses to share them."""
        found = [f"the table of hot prefixes is not shared: {self.last_error}"] if self.last_error else []
        age = self.stale_seconds()
        if age is not None:
            found.append(f"the table of hot prefixes is {format_duration(age)} old: no gateway has renewed it")
        return found

    async def _run(self) -> None:
        while True:
            await self.run_once()
            await asyncio.sleep(HOT_PREFIX_POLL_SECONDS)

    async def run_once(self) -> None:
        """Offers and requests tables, applies replies, and drops tables that are too old."""
        now, wall_ms = self._clock.now(), int(self._clock.wall() * 1000)
        models = list(self._hooks.active_models())
        commands: list[Command] = []
        for model in models:
            lease = self._leases.setdefault(model, TableLease())
            if lease.asking_since is None:
                lease.asking_since = now
            commands.append(self._command(model, lease, wall_ms))
        replies = await self._link.run(commands) if commands else None
        now = self._clock.now()
        for model, reply in zip(models, replies or (), strict=False):
            if isinstance(reply, ResponseError):
                self.last_error = first_line(reply)
            elif reply:
                self.last_error = ""
                if model in self._leases:  # it may have left meanwhile
                    self._on_reply(model, self._leases[model], reply, now)
        self._drop_stale(now)

    def _command(self, model: str, lease: TableLease, wall_ms: int) -> Command:
        offer = lease.make_offer(self._hooks.local_table(model), wall_ms)
        epoch, table = ("", b"") if offer is None else (str(offer[0]), encode(offer[1]))
        lease_ms = int(HOT_PREFIX_LEASE_SECONDS * 1000)
        known = "" if lease.table is None else str(lease.epoch)
        arguments = (epoch, table, known, lease_ms, _MAX_EPOCH)
        return ("EVAL", _LEASE_SCRIPT, 1, redis_keys.hot_prefixes(model), self._name, *arguments)

    def _on_reply(self, model: str, lease: TableLease, reply: Any, now: float) -> None:
        try:
            holder, epoch = bytes(reply[0]).decode(errors="replace"), int(reply[1])
        except (IndexError, TypeError, ValueError):
            self.undecodable += 1
            return
        table = None
        if len(reply) > 2:
            table = decode_table(bytes(reply[2] or b""), HOT_PREFIXES)
            self.undecodable += table is None
        was_ours = lease.is_ours
        if 0 < epoch < _MAX_EPOCH and lease.on_reply(holder == self._name, epoch, table, now):
            if lease.is_ours and not was_ours and lease.table is not None:
                self._hooks.on_acquired(model, lease.table)
            self._hooks.on_table(model, lease.epoch, lease.table)

    def _drop_stale(self, now: float) -> None:
        active = set(self._hooks.active_models())
        for model, lease in list(self._leases.items()):
            if lease.table is None or lease.confirmed_at is None:
                continue
            if lease.asking_since is not None and now - lease.asking_since > REDIS_STALE_SECONDS:
                lease.table, lease.is_ours = None, False
                self._hooks.on_table(model, 0, None)
            elif model not in active:
                lease.is_ours, lease.asking_since = (
                    False,
                    None,
                )  # without traffic: the first active gateway becomes the owner
        for model in [model for model, lease in self._leases.items() if lease.table is None and model not in active]:
            del self._leases[model]


ACTIVE_SECONDS = 60.0


class _RoleCounts:
    """The instances of one role and the counts of their prompts."""

    __slots__ = ("hot_prefixes", "ready")

    def __init__(self) -> None:
        self.ready: frozenset[str] = frozenset()
        self.hot_prefixes = HotPrefixes()


class _ModelCounts:
    __slots__ = ("last_dispatch_at", "prefilling", "serving")

    def __init__(self) -> None:
        self.serving = _RoleCounts()
        self.prefilling = _RoleCounts()
        self.last_dispatch_at = float("-inf")


class HotPrefixCounter:
    """The counts of all models of the fleet."""

    def __init__(self) -> None:
        self._max_prefixes = HOT_PREFIXES
        self._models: dict[str, _ModelCounts] = {}

    def update_fleet(self, fleet: Fleet) -> None:
        """Takes over the ready instances of each role."""
        self._models = {key: self._models.get(key) or _ModelCounts() for key in fleet.models}
        for key, model in self._models.items():
            ready = [item for item in fleet.instances.get(key, ()) if item.state is InstanceState.READY]
            model.prefilling.ready = frozenset([item.id for item in ready if item.role is Role.PREFILL])
            model.serving.ready = frozenset([item.id for item in ready if item.role is not Role.PREFILL])

    def on_dispatch(self, key: str, instance: str, chain: PrefixChain, now: float) -> None:
        """Counts a prompt that this or another gateway sent to the instance."""
        model = self._models.get(key)
        if model is None:
            return
        for counts in (model.serving, model.prefilling):
            if instance in counts.ready:
                counts.hot_prefixes.observe(chain, len(counts.ready))
                model.last_dispatch_at = now

    def active_models(self, now: float) -> list[str]:
        """Returns the models that had traffic in the last minute."""
        return [key for key, model in self._models.items() if now - model.last_dispatch_at <= ACTIVE_SECONDS]

    def table(self, key: str) -> HotPrefixTable | None:
        """Returns a model's table as counted here; None for an unknown model."""
        model = self._models.get(key)
        if model is None:
            return None
        return HotPrefixTable(
            *[
                _pack_hashes(counts.hot_prefixes.top_prefixes(self._max_prefixes))
                for counts in (model.serving, model.prefilling)
            ]
        )

    def start_from_table(self, key: str, table: HotPrefixTable) -> None:
        """Continues from the table of the gateway that held the lease until now."""
        model = self._models.get(key)
        if model is not None:
            model.serving.hot_prefixes.start_from_table(unpack_hashes(table.serving))
            model.prefilling.hot_prefixes.start_from_table(unpack_hashes(table.prefilling))


def _pack_hashes(hashes: Iterable[Any]) -> bytes:
    return array("Q", sorted(hashes)).tobytes()
