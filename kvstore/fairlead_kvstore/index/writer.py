"""The writer of models' indexes to Redis: a lease, numbered entries and snapshots for each model.

``offer`` queues changes and returns. A task writes them in steps, as one entry or several. Each
write first compares the lease and the stream's position in a script. So a writer that was paused
cannot write, and one whose Redis has lost writes detects it at its next write. Then, and when too
many changes wait, everything is written again in a new epoch. So what is read always belongs to one
epoch, with no entry missing. Between steps the writer rests up to eight times as long as the last
one took, at most 20 ms. It does not rest while the changes of more than one entry wait. So changes
arrive within some milliseconds at a nearby Redis, and the cost of small entries stays bounded.

The writer does not wait for an unreachable Redis: changes wait, bounded, and the block store is
current when Redis returns. An exchange whose answer was lost is sent again: the stored position
shows whether it was written. A Redis that is too slow for the changes of a model never stops the
reading of its engines. Beyond a bound, the waiting changes are dropped: an *overflow*. Then the
lease is renewed, and nothing else is written for ten seconds. After that a new epoch begins.

Why the pause: a Redis that is too slow for the changes is too slow for epochs one after the other.

A step renews due leases first. It writes only the changes that wait by then, since under load there
are always more, and then due snapshots.

A full Redis does not stop the writer either. If Redis refuses for two leases, the writer gives up
its lease: a writer that cannot write would look like a leader to readers that get nothing. Until
Redis accepts writes again, it requests the lease more often than other indexers, since it has the
data to write.

The Lua scripts of the index: every write checks the lease in the same step. The scripts use
Redis commands up to 6.2.

Keys are always (own, idx, ev) of one model. A write fails if the indexer was paused or disconnected
for longer than its lease. It also fails if Redis has lost writes (a failover, a restart, FLUSHALL),
since ``at`` then differs. After either failure the indexer begins a new epoch, or leads no more.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

import msgspec
from redis.exceptions import ResponseError
from xxhash import xxh3_64_intdigest

from fairlead.errors import BadInput, first_line
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import KeyedTasks, cancel_and_wait
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import (
    META_FIELD,
    POSITION_FIELD,
    STATUSES_FIELD,
    IndexMeta,
    InstanceHeader,
    InstanceStatus,
    InstanceStatuses,
    encode_entry,
    encode_position,
    encode_value,
    header_field,
)
from fairlead_kvstore.index.recovery import InstanceCheckpoint, RecoveredIndex, recover_index
from fairlead_kvstore.index.writer_state import INDEX_STREAM_BYTES, ModelWriteState
from fairlead_kvstore.redis.link import RedisLink

INDEX_FLUSH_SECONDS: Final = 0.02
"""Limit: longest time that changes of the index are batched; less while writing takes little."""
INDEX_BATCH_SECONDS: Final = 0.002
"""Limit: time that changes after a pause wait for others of the same step."""
INDEX_EXPIRE_SECONDS: Final = 900.0
"""Limit: an index without a writer expires in Redis after this long."""
INDEX_NOTE_SECONDS: Final = 1.0
"""Limit: interval at which the indexer writes the state of its instances, if it has changed."""
INDEX_OVERFLOW_SECONDS: Final = 10.0
"""Limit: until a model is written again of which too many changes waited for Redis."""

_LOG: Final = logging.getLogger("fairlead.indexer")
_LIMITS: Final = Limits()
_BYTES_PER_WRITE: Final = 1024 * 1024
_FIELDS_PER_DELETE: Final = 1_000
_MAX_REFUSED_LEASES: Final = 2.0
"""The refused time, in leases, after which a writer gives up its lease. An indexer that does not
have the data then requests the lease only once in this time.
"""
_MAX_CONCURRENT_MODELS: Final = 64
"""The models written at a time. In turn, with a distant Redis, the last leases would end."""
_TURN_FRACTION: Final = 6.0
"""The part of a lease for which other models wait for the turn of one."""
_SALTS: Final = 1_024
"""The number of salts. A new epoch is at least the Unix milliseconds times this, plus a salt.

After Redis was emptied, only the salt of the holder distinguishes the epochs of two holders.
"""
_REST_FACTOR: Final = 8.0
"""The rest after a step, in durations of the step; at most ``index_flush_seconds``. Small entries
thus take at most a ninth of the time.
"""
_TOO_SLOW: Final = "Redis is too slow for its changes"
_DAMAGED_KEY_ERRORS: Final = ("WRONGTYPE", "ID specified")

LEAD: Final = """
local own, idx, ev = KEYS[1], KEYS[2], KEYS[3]
local holder, mine, px, ttl, least, again = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local a, b = redis.call('TYPE', own).ok, redis.call('TYPE', idx).ok
if a ~= 'string' and a ~= 'none' then redis.call('DEL', own) end
if b ~= 'hash' and b ~= 'none' then redis.call('DEL', idx) end
local at = redis.call('HGET', idx, 'at') or ''
local lease = redis.call('GET', own)
local left = redis.call('PTTL', own)
if lease and (left < 0 or left > 4 * tonumber(px)) then lease = false end
local same = at == ARGV[7] or at == ARGV[8]
local kind = redis.call('TYPE', ev).ok
if kind == 'stream' then
  local last = redis.call('XREVRANGE', ev, '+', '-', 'COUNT', 1)
  same = same and last[1] and last[1][1] == string.gsub(at, ':', '-')
elseif kind ~= 'none' or not string.match(at, ':0$') then
  same = false
end
if lease and lease ~= mine and string.match(lease, '^%d+:(.*)$') ~= holder then
  return {'held', lease}
end
if mine ~= '' and again == '0' and same then
  redis.call('SET', own, mine, 'PX', px)
  redis.call('PEXPIRE', idx, ttl)
  redis.call('PEXPIRE', ev, ttl)
  if ARGV[9] ~= '' and redis.call('HGET', idx, 'meta') ~= ARGV[9] then redis.call('HSET', idx, 'meta', ARGV[9]) end
  return {'led', mine}
end
local before = tonumber(string.match(at, '^(%d+):') or '0') or 0
if before > 9e15 then before = 0 end
local known = tonumber(string.match(mine, '^(%d+):') or '0') or 0
local epoch = string.format('%.0f', math.max(before + 1, known + 1, tonumber(least)))
lease = epoch .. ':' .. holder
redis.call('SET', own, lease, 'PX', px)
return {'new', lease}
"""
"""Takes, renews or asks for the lease.

holder, lease, px, ttl: holder, own lease or '', ms of a lease, ms that keys live.
least, again: least new epoch, '1' for a new epoch in any case.
further: two values that ``at`` may have, value of ``meta`` or ''.

Reply: ('held' | 'led' | 'new', lease).

It deletes only what exists. After a deletion, a full Redis refuses none of a script's writes, and
an indexer that cannot write would get the lease again.
"""

_LEASED: Final = """
local own, idx, ev = KEYS[1], KEYS[2], KEYS[3]
if redis.call('GET', own) ~= ARGV[1] then return {'fenced'} end
"""
"""The start of each script that writes: the lease is compared first."""

BEGIN: Final = (
    _LEASED
    + """
redis.call('DEL', ev)
redis.call('HSET', idx, 'at', ARGV[2], 'meta', ARGV[3])
redis.call('PEXPIRE', idx, ARGV[4])
return {'ok'}
"""
)
"""(lease, at, meta, ms that keys live) → ('ok' | 'fenced')."""

WRITE: Final = (
    _LEASED
    + """
local at = redis.call('HGET', idx, 'at') or ''
if at == ARGV[3] then return {'ok'} end
if at ~= ARGV[2] then return {'moved', at} end
redis.call('XADD', ev, ARGV[4], 'd', ARGV[5])
redis.call('HSET', idx, 'at', ARGV[3])
if ARGV[6] ~= '' then redis.call('XTRIM', ev, 'MINID', '=', ARGV[6]) end
redis.call('PEXPIRE', own, ARGV[7])
if redis.call('PTTL', ev) < 0 then redis.call('PEXPIRE', ev, ARGV[8]) end
return {'ok'}
"""
)
"""Writes an entry, unless it is written already.

Arguments: lease, at before, at after, id of the entry, entry, oldest id to keep or '', ms of a
lease, ms that keys live.
Reply: ('ok' | 'fenced') or ('moved', at).
"""

KEEP: Final = (
    _LEASED
    + """
local at = redis.call('HGET', idx, 'at') or ''
if at ~= ARGV[2] then return {'moved', at} end
local n = tonumber(ARGV[4])
for i = 5 + n, #ARGV, 2 do redis.call('HSET', idx, ARGV[i], ARGV[i + 1]) end
for i = 5, 4 + n do redis.call('HDEL', idx, ARGV[i]) end
redis.call('PEXPIRE', own, ARGV[3])
return {'ok'}
"""
)
"""Writes and deletes fields.

Arguments: lease, at, ms of a lease, number of deleted fields, these fields, then field and value in
turn.
Reply: ('ok' | 'fenced') or ('moved', at).
"""

RENEW: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
"""(lease, ms of a lease; 0: release it), with own as the only key → 1 if the lease is valid."""


class IndexOwner(Protocol):
    """The indexer as its writer sees it. Calls come on the loop and must not block."""

    def start_model(self, model_key: str, recovered: RecoveredIndex) -> None:
        """Begins to read a model's engines from the recovered state, because this process leads
        now.
        """

    def stop_model(self, model_key: str) -> None:
        """Drops the model and stops reading its engines, because another indexer leads."""

    def instances(self, model_key: str) -> Sequence[str]:
        """Returns the ids of all attached instances of a model, and of its shared store."""

    def checkpoint(self, instance: str) -> InstanceCheckpoint:
        """Returns the current state of an instance. Raises KeyError for one that is not
        attached.
        """


class IndexWriter:
    """A ``ChangeSink`` that writes to Redis. It neither starts nor stops the link.

    holder: a name that no other process ever has.
    instance_statuses: called about once a second for each led model.
    fingerprint: of the secret of block hashes (``secret_fingerprint``), written with the statuses.
    max_stream_bytes: the bound of the stream of each led model.
    """

    def __init__(
        self,
        link: RedisLink,
        owner: IndexOwner,
        clock: Clock,
        *,
        holder: str,
        instance_statuses: Callable[[str], Mapping[str, InstanceStatus]],
        fingerprint: int = 0,
        limits: Limits = _LIMITS,
    ) -> None:
        self._link = link
        self._instance_statuses = instance_statuses
        self._fingerprint = fingerprint
        self._owner = owner
        self._clock = clock
        self.holder = holder
        self._limits = limits
        self._salt = xxh3_64_intdigest(holder.encode()) % _SALTS
        self._lease_ms = int(limits.index_lease_seconds * 1000)
        self._expire_ms = int(INDEX_EXPIRE_SECONDS * 1000)
        self._models: dict[str, ModelWriteState] = {}
        self.max_stream_bytes = INDEX_STREAM_BYTES
        self._offered = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._turns = KeyedTasks()
        self._free, self._free_to_take_over = (asyncio.Semaphore(_MAX_CONCURRENT_MODELS) for _ in range(2))

    def set_models(self, model_keys: Iterable[str]) -> None:
        """Sets the models to lead if no other indexer does. Others are dropped, and their leases
        expire. One whose name no key can have is logged and left out.
        """
        wanted = set(model_keys)
        for key in sorted(wanted - self._models.keys()):
            try:
                redis_keys.index_keys(key)
                self._models[key] = ModelWriteState(key, self._limits)
            except BadInput as error:
                _LOG.warning("cannot index model %r: %s", key, error.message)
        for key in self._models.keys() - wanted:
            state = self._models.pop(key)
            if state.is_active:
                self._owner.stop_model(key)

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        """Queues changes of ``batches`` event batches; drops those of a model not read here."""
        state = self._models.get(model_key)
        if state is not None and state.is_active:
            state.offer(changes, batches, self._clock.now())
            self._offered.set()

    def overflows(self) -> dict[str, int]:
        return {key: state.overflows for key, state in self._models.items()}

    def problems(self) -> dict[str, str]:
        slow = {key: _TOO_SLOW for key, state in self._models.items() if state.overflowed_at is not None}
        return slow | {key: state.problem for key, state in self._models.items() if state.problem}

    def is_leader(self, model_key: str) -> bool:
        state = self._models.get(model_key)
        return state is not None and bool(state.lease)

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="index writer")

    async def stop(self) -> None:
        """Stops the task, does one last step and releases the leases, as far as Redis answers."""
        task, self._task = self._task, None
        await cancel_and_wait(task)
        await self._turns.cancel()
        await self.step()
        for state in self._models.values():
            if state.lease:
                lease_key, _, _ = redis_keys.index_keys(state.model_key)
                await self._link.run([("EVAL", RENEW, 1, lease_key, state.lease, 0)])
                state.lease = b""

    async def step(self) -> None:
        """Renews due leases and writes what waits or is due, of up to 64 models at a time."""
        await self._turns.wait()
        self._start_turns()
        await self._turns.wait()

    def _start_turns(self) -> set[asyncio.Task[None]]:
        turns = [self._turns.start(key, partial(self._take_turn, state)) for key, state in self._models.items()]
        return set(filter(None, turns))

    async def _take_turn(self, state: ModelWriteState) -> None:
        async with self._free if state.is_active else self._free_to_take_over:
            try:
                await self._write_model(state)
            except Exception:  # noqa: BLE001  # it is logged
                _LOG.exception("%s: a defect stopped the writing of its index", state.model_key)
                self._stop_leading(state)
                state.problem = "a defect stopped the writing of its index, which is tried again"
                state.renew_at = self._clock.now() + self._limits.index_lease_seconds

    async def _write_model(self, state: ModelWriteState) -> None:
        """Renews a model's lease if that is due, then writes what waits or is due."""
        if self._clock.now() >= state.renew_at:
            await self._renew_lease(state)
        if state.lease and self._may_begin_epoch(state):
            await self._write_new_epoch(state)
        await self._write_waiting(state)
        if state.has_written_all:
            await self._write_due(state)
        if state.has_written_all and self._clock.now() >= state.statuses_at:
            await self._write_statuses(state)

    async def _run(self) -> None:
        while True:
            await self._link.wait_connected()
            self._offered.clear()  # before the step: offers during it set the event again
            begun = self._clock.now()
            if turns := self._start_turns():  # others, such as restores, may take longer than a lease
                await asyncio.wait(turns, timeout=self._limits.index_lease_seconds / _TURN_FRACTION)
            spent = self._clock.now() - begun
            until = min((state.renew_at for state in self._models.values()), default=self._clock.now() + 1.0)
            try:
                async with asyncio.timeout(max(INDEX_FLUSH_SECONDS, until - self._clock.now())):
                    await self._offered.wait()
            except TimeoutError:
                continue
            if not any(state.is_behind for state in self._models.values()):
                rest = min(INDEX_FLUSH_SECONDS, _REST_FACTOR * spent) - (self._clock.now() - begun - spent)
                await asyncio.sleep(max(INDEX_BATCH_SECONDS, rest))

    # --- the lease ------------------------------------------------------------------------------------------------------

    async def _renew_lease(self, state: ModelWriteState) -> None:
        limits, now = self._limits, self._clock.now()
        state.renew_at = now + limits.index_lease_seconds / 3
        if (
            state.refused_since is not None
            and now - state.refused_since > limits.index_lease_seconds * _MAX_REFUSED_LEASES
        ):
            state.lease = b""
        new_epoch = "1" if self._may_begin_epoch(state) else "0"
        arguments = (
            self.holder,
            state.lease,
            self._lease_ms,
            self._expire_ms,
            int(self._clock.wall() * 1000) * _SALTS + self._salt,
            new_epoch,
            *state.possible_position_values(),
            state.meta,
        )
        reply = await self._eval(state, LEAD, *arguments)
        if reply is None:
            if state.refused_since is not None and not state.is_active:
                # The former leader has the data; another needs replays, which may fall short.
                state.renew_at = now + limits.index_lease_seconds * _MAX_REFUSED_LEASES
            return
        kind, lease = reply[0], bytes(reply[1])
        if kind == b"held":
            self._stop_leading(state)
        elif kind == b"new":
            state.require_new_epoch()
            if state.is_active:
                state.lease = lease
                return
            wall, (lease_key, _, _) = self._clock.wall(), redis_keys.index_keys(state.model_key)
            renew = ("EVAL", RENEW, 1, lease_key, lease, self._lease_ms)
            found = await recover_index(self._link, state.model_key, wall - now, [renew])
            if found is not None and self._models.get(state.model_key) is state:
                state.is_active, state.lease = True, lease
                self._owner.start_model(state.model_key, found)

    def _may_begin_epoch(self, state: ModelWriteState) -> bool:
        since = state.overflowed_at
        return state.needs_new_epoch and (since is None or self._clock.now() - since >= INDEX_OVERFLOW_SECONDS)

    def _stop_leading(self, state: ModelWriteState) -> None:
        was_active = state.is_active
        state.stop_leading()
        if was_active:
            self._owner.stop_model(state.model_key)

    # --- writing --------------------------------------------------------------------------------------------------------

    async def _write_waiting(self, state: ModelWriteState) -> None:
        """Writes the changes that wait now, in as many entries as it takes; later ones wait for the
        next step.
        """
        entries = state.waiting_entries
        while entries and state.lease and not state.needs_new_epoch and state.has_waiting and await self._flush(state):
            entries -= 1

    async def _flush(self, state: ModelWriteState) -> bool:
        """Writes the pending entry, or a new one of waiting changes; False if that failed."""
        entry = state.pending
        if entry is None:
            wall = self._clock.wall()
            entry = state.prepare_entry(encode_entry(state.take_changes(), wall, wall - self._clock.now()))
        trim = "" if entry.trim is None else f"{state.epoch}-{entry.trim}"
        after, name = encode_position(state.epoch, entry.sequence), f"{state.epoch}-{entry.sequence}"
        words = (after, name, entry.data, trim, self._lease_ms, self._expire_ms)
        is_written = await self._write(state, WRITE, state.lease, state.position_value(), *words)
        if not is_written or state.pending is not entry:  # too many changes may have come meanwhile
            return False
        state.on_acknowledged()
        return True

    async def _write_new_epoch(self, state: ModelWriteState) -> None:
        """Writes snapshots of all blocks of a model, in the epoch of the lease."""
        epoch = int(state.lease.partition(b":")[0])
        if epoch <= state.epoch:
            state.renew_at = 0.0  # the epoch of the lease has already begun
            return
        meta = IndexMeta(epoch, self.holder, self._clock.wall(), ready=False)
        words = (encode_position(epoch, 0), encode_value(meta), self._expire_ms)
        if not await self._write(state, BEGIN, state.lease, *words):
            return
        state.begin_epoch(epoch)
        for name in self._owner.instances(state.model_key):
            if not await self._write_item(state, name):
                break
            await self._write_waiting(state)  # a large index takes seconds, and changes arrive meanwhile
            if state.needs_new_epoch or state.pending is not None:
                break
        else:
            if await self._finish_epoch(state, meta) and not state.needs_new_epoch:
                state.overflowed_at = None
                return
        state.require_new_epoch()

    async def _finish_epoch(self, state: ModelWriteState, meta: IndexMeta) -> bool:
        """Deletes fields of earlier epochs and marks the index ready; False if that failed."""
        _, idx, _ = redis_keys.index_keys(state.model_key)
        replies = await self._link.run([("HKEYS", idx)])
        if replies is None or not isinstance(replies[0], list):
            return False
        needed = {POSITION_FIELD, META_FIELD, STATUSES_FIELD}
        for name, item in state.items.items():
            needed.add(header_field(name))
            needed.update(field for _, field in item.parts.values())
        obsolete = [field for field in replies[0] if field not in needed]
        state.meta = encode_value(msgspec.structs.replace(meta, ready=True))
        return await self._write_fields(state, {META_FIELD: state.meta}, obsolete)

    async def _write_due(self, state: ModelWriteState) -> None:
        fields, state.obsolete_fields = state.obsolete_fields, []
        name = state.next_due_item(self.max_stream_bytes)
        if not await self._write_fields(state, {}, fields) or (name and not await self._write_item(state, name)):
            state.require_new_epoch()

    async def _write_statuses(self, state: ModelWriteState) -> None:
        """Writes the statuses of the instances if they have changed."""
        state.statuses_at = self._clock.now() + INDEX_NOTE_SECONDS
        statuses = dict(self._instance_statuses(state.model_key))
        if state.written_statuses != (state.epoch, statuses):
            data = encode_value(InstanceStatuses(state.epoch, self._clock.wall(), self._fingerprint, statuses))
            if await self._write_fields(state, {STATUSES_FIELD: data}, ()):
                state.written_statuses = state.epoch, statuses

    async def _write_item(self, state: ModelWriteState, name: str) -> bool:
        """Writes a snapshot of one instance; returns False if that failed.

        It contains the waiting changes; entries repeat them. A removed instance is skipped: True.
        """
        try:
            checkpoint = self._owner.checkpoint(name)
        except KeyError:
            return True  # it was removed meanwhile
        size = sum([table.rows for table in checkpoint.slice.tables])
        parts, fresh, obsolete = state.record_parts(name, checkpoint.rows, size)
        header = encode_value(InstanceHeader(state.epoch, state.sequence, checkpoint.slice, parts, checkpoint.position))
        state.items[name].is_partial = checkpoint.is_partial
        return await self._write_fields(state, {**fresh, header_field(name): header}, obsolete)

    async def _write_fields(
        self, state: ModelWriteState, fields: Mapping[bytes, bytes], obsolete: Sequence[bytes]
    ) -> bool:
        """Sets fields in the given order, a MiB at a time, then deletes obsolete ones. Returns
        whether all of it was written; otherwise, a part may be.
        """
        for pairs, deleted in _batches(fields, obsolete):
            head = (state.lease, state.position_value(), self._lease_ms, len(deleted))
            if not await self._write(state, KEEP, *head, *deleted, *pairs):
                return False
        return True

    async def _write(self, state: ModelWriteState, script: str, *words: str | bytes | int) -> bool:
        """Runs a script that writes, and returns whether it did.

        If it refuses, the lease is checked at the next step. An unexpected position requires a new
        epoch.
        """
        reply = await self._eval(state, script, *words)
        if reply is None or reply[0] == b"ok":
            return reply is not None
        if reply[0] == b"moved":
            state.require_new_epoch()
        state.renew_at = 0.0
        return False

    async def _eval(self, state: ModelWriteState, script: str, *words: str | bytes | int) -> list[Any] | None:
        """Returns the reply of a script; None when Redis is unreachable or refuses."""
        replies = await self._link.run([("EVAL", script, 3, *redis_keys.index_keys(state.model_key), *words)])
        if replies is None:
            return None
        reply = replies[0]
        if isinstance(reply, ResponseError):
            text = first_line(reply)
            state.problem = f"Redis refuses: {text}"
            if state.refused_since is None:
                state.refused_since = self._clock.now()
            if any(sign in text for sign in _DAMAGED_KEY_ERRORS):
                state.require_new_epoch()  # a key has a wrong type: a new epoch replaces it
                state.renew_at = 0.0
            return None
        state.refused_since, state.problem = None, ""
        return list(reply)


def _batches(fields: Mapping[bytes, bytes], obsolete: Sequence[bytes]) -> Iterator[tuple[list[bytes], Sequence[bytes]]]:
    """Yields fields with their values in turn, a MiB at a time, then fields to delete."""
    pairs: list[bytes] = []
    size = 0
    for field, data in fields.items():
        pairs += (field, data)
        size += len(data)
        if size >= _BYTES_PER_WRITE:
            yield pairs, ()
            pairs, size = [], 0
    for start in range(0, len(obsolete), _FIELDS_PER_DELETE):
        yield pairs, obsolete[start : start + _FIELDS_PER_DELETE]
        pairs = []
    if pairs:
        yield pairs, ()
