"""The one process that writes a model's index to Redis: a lease, numbered entries, and now and then an instance as a whole.

``offer`` puts changes aside and returns; a task writes them, up to 20 ms later, as one entry in one step that first compares the
lease and where the stream was left (``scripts.py``). So a writer that was paused cannot write, and one whose Redis has lost
something sees it at its next write. Then, and whenever more waits than may, everything is written down anew in a new epoch: what a
mirror is made of is always one epoch's, unbroken. Between steps it rests eight times as long as the last one took: a Redis that is
near has changes within some milliseconds, and what small entries cost this process is bounded all the same.

Nobody waits for a Redis that is away: changes wait, bounded; the truth goes on, and is what counts when it is back. An exchange
whose answer was lost is sent again: ``at`` tells whether it had been written. While Redis answers but more changes come than can
be written, the writer says that it is ``behind``, and engines are not read until it is not: to overflow would cost everybody a new
epoch. Whatever else is due (a lease, an instance that has to be written down) has its turn after what waited when the step began,
since under load something waits always.

Redis being full is no reason to stop either. The lease is over then, since it cannot be renewed: a writer that cannot write would
look like a leader to mirrors that get nothing. Who had it goes on to ask for it, more often than others: it has what is to be
written.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Protocol

import msgspec
from redis.exceptions import ResponseError
from xxhash import xxh3_64_intdigest

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index import lua, redis_keys
from fairlead_kvstore.index.format import (
    HINTS_FIELD,
    META_FIELD,
    POSITION_FIELD,
    HintsHeader,
    IndexMeta,
    InstanceHeader,
    encode_entry,
    encode_hints,
    encode_position,
    encode_value,
    header_field,
)
from fairlead_kvstore.index.instance_status import STATUSES_FIELD, InstanceStatus, InstanceStatuses
from fairlead_kvstore.index.recovery import InstanceCheckpoint, RecoveredIndex, recover_index
from fairlead_kvstore.index.writer_state import HINTS_ITEM, ModelWriteState
from fairlead_kvstore.redis.link import RedisLink

_LIMITS: Final = Limits()
_BYTES_PER_WRITE: Final = 1024 * 1024
_FIELDS_PER_DELETE: Final = 1_000
_MAX_REFUSED_LEASES: Final = 2.0
"""A writer that is refused for so many leases lets its lease go; who has nothing to write asks no more often."""
_MAX_CONCURRENT_MODELS: Final = 64
"""Each has a connection of its own while it waits for an answer."""
_SALTS: Final = 1_024
"""Epochs are milliseconds with the holder behind them: after Redis was emptied, nothing else tells apart what two holders begin."""
_REST_FACTOR: Final = 8.0
"""So many times what a step took is rested behind it: at most a ninth of the time goes into writing little."""


_DAMAGED_KEY_ERRORS: Final = ("WRONGTYPE", "ID specified")


class IndexOwner(Protocol):
    """The indexer, as its writer sees it. Everything is called on the loop, and must not wait."""

    def start_model(self, model_key: str, recovered: RecoveredIndex) -> None:
        """We lead now: read this model's engines. ``found`` is what an earlier indexer left, to go on from; times are ours."""
        ...

    def stop_model(self, model_key: str) -> None:
        """Another one leads: forget the model and read its engines no more."""
        ...

    def instances(self, model_key: str) -> Sequence[str]:
        """All that are attached."""
        ...

    def checkpoint(self, instance: str) -> InstanceCheckpoint:
        """The instance as it is at this moment. Raises KeyError for one that is not attached."""
        ...

    def shared_store_hints(self, model_key: str) -> Iterable[tuple[int, float]]:
        """``Truth.hints``."""
        ...


class IndexWriter:
    """A ``Sink``. ``holder`` names this process and no other, ever. The link is started and stopped by whoever made it.

    ``notes`` is asked about once a second what is to be said of a model's instances (``notes.py``), ``mark`` is the secret's.
    """

    def __init__(
        self,
        link: RedisLink,
        owner: IndexOwner,
        clock: Clock,
        *,
        holder: str,
        instance_statuses: Callable[[str], Mapping[str, InstanceStatus]] | None = None,
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
        self._expire_ms = int(limits.index_expire_seconds * 1000)
        self._models: dict[str, ModelWriteState] = {}
        self._offered = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def set_models(self, model_keys: Iterable[str]) -> None:
        """The models to lead if nobody else does; those that are left out are given up. Raises BadInput for a bad name."""
        wanted = list(model_keys)
        for key in wanted:
            redis_keys.index_keys(key)
            if key not in self._models:
                self._models[key] = ModelWriteState(key, self._limits)
        for key in self._models.keys() - set(wanted):
            book = self._models.pop(key)
            if book.is_active:
                self._owner.stop_model(key)

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        """Write them some time soon. Changes of a model that this writer does not lead are not kept."""
        book = self._models.get(model_key)
        if book is not None and book.is_active:
            book.offer(changes, batches)
            self._offered.set()

    def is_backlogged(self) -> bool:
        """Whether more waits than should while it could be written: whoever makes changes should make no more for a moment.

        Never while Redis is away or refuses: what happens then does not wait for it.
        """
        most, connected = self._limits.index_backpressure_blocks, self._link.state.connected
        return connected and any(
            book.waiting_blocks > most and book.lease != b"" and book.refused_since is None
            for book in self._models.values()
        )

    def is_leader(self, model_key: str) -> bool:
        """Whether this process writes the model, as far as it knows."""
        book = self._models.get(model_key)
        return book is not None and bool(book.lease)

    def describe(self, model_key: str) -> str:
        """For people: who leads, how far it is, what is wrong."""
        book = self._models.get(model_key)
        return "not served" if book is None else book.description

    def start(self) -> None:
        """Begin on the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="index writer")

    async def stop(self) -> None:
        """Write what waits, give the leases back, and leave."""
        task, self._task = self._task, None
        await cancel_and_wait(task)
        await self.step()
        for book in self._models.values():
            if book.lease:
                own, _, _ = redis_keys.index_keys(book.model_key)
                await self._link.run([("EVAL", lua.RELEASE, 1, own, book.lease)])
                book.lease = b""

    async def step(self) -> None:
        """Renew what is to be renewed, write what waits, and write down what is due. Models do not wait for one another: a Redis that
        is far away would outlast the leases of the last ones."""
        books = list(self._models.values())
        if len(books) == 1:
            await self._write_model(books[0])
            return
        free = asyncio.Semaphore(_MAX_CONCURRENT_MODELS)

        async def turn(book: ModelWriteState) -> None:
            async with free:
                await self._write_model(book)

        async with asyncio.TaskGroup() as group:
            for book in books:
                group.create_task(turn(book))

    async def _write_model(self, book: ModelWriteState) -> None:
        """What there is to do for one model."""
        if self._clock.now() >= book.renew_at:
            await self._renew_lease(book)
        if book.lease and book.needs_new_epoch:
            await self._write_new_epoch(book)
        await self._write_waiting(book)
        if book.lease and not book.needs_new_epoch and book.pending is None:
            await self._write_due(book)
        if book.lease and not book.needs_new_epoch and book.pending is None and self._clock.now() >= book.statuses_at:
            await self._write_statuses(book)

    async def _run(self) -> None:
        while True:
            await self._link.wait_connected()
            self._offered.clear()  # before the step: what is offered while it waits for Redis is not told again
            begun = self._clock.now()
            await self.step()
            spent = self._clock.now() - begun
            until = min((book.renew_at for book in self._models.values()), default=self._clock.now() + 1.0)
            try:
                async with asyncio.timeout(max(self._limits.index_flush_seconds, until - self._clock.now())):
                    await self._offered.wait()
            except TimeoutError:
                continue
            if not self.is_backlogged():
                rest = min(self._limits.index_flush_seconds, _REST_FACTOR * spent) - (self._clock.now() - begun - spent)
                await asyncio.sleep(max(self._limits.index_batch_seconds, rest))

    # --- the lease ------------------------------------------------------------------------------------------------------

    async def _renew_lease(self, book: ModelWriteState) -> None:
        limits, now = self._limits, self._clock.now()
        book.renew_at = now + limits.index_lease_seconds / 3
        if (
            book.refused_since is not None
            and now - book.refused_since > limits.index_lease_seconds * _MAX_REFUSED_LEASES
        ):
            book.lease = b""
        again = "1" if book.needs_new_epoch else "0"
        told = (
            self.holder,
            book.lease,
            self._lease_ms,
            self._expire_ms,
            int(self._clock.wall() * 1000) * _SALTS + self._salt,
            again,
            *book.possible_position_values(),
            book.meta,
        )
        reply = await self._eval(book, lua.LEAD, *told)
        if reply is None:
            if book.refused_since is not None and not book.is_active:
                # Whoever has led knows what to write; who has not would have to ask engines, which may not keep so much.
                book.renew_at = now + limits.index_lease_seconds * _MAX_REFUSED_LEASES
            return
        kind, lease = reply[0], bytes(reply[1])
        if kind == b"held":
            self._on_lease_lost(book, lease)
        elif kind == b"led":
            if book.pending is not None and bytes(reply[2]) == encode_position(book.epoch, book.pending.sequence):
                book.on_acknowledged()
        else:
            if not book.is_active:
                wall, (own, _, _) = self._clock.wall(), redis_keys.index_keys(book.model_key)
                renew = ("EVAL", lua.RENEW, 1, own, lease, self._lease_ms)
                found = await recover_index(self._link, book.model_key, wall - now, now, [renew])
                if found is None:
                    return
                book.is_active = True
                book.require_new_epoch()
                book.lease = lease
                self._owner.start_model(book.model_key, found)
            book.lease = lease
            book.require_new_epoch()

    def _on_lease_lost(self, book: ModelWriteState, lease: bytes) -> None:
        who = lease.partition(b":")[2].decode("utf-8", "replace")
        was = book.is_active
        book.stop_leading()
        book.description = f"{who} leads"
        if was:
            self._owner.stop_model(book.model_key)

    # --- writing --------------------------------------------------------------------------------------------------------

    async def _write_waiting(self, book: ModelWriteState) -> None:
        """What waits now, in as many entries as it takes. What comes meanwhile is the next step's."""
        entries = 1 + book.waiting_blocks // self._limits.index_entry_blocks + (book.pending is not None)
        while entries and book.lease and not book.needs_new_epoch and book.has_waiting and await self._flush(book):
            entries -= 1

    async def _flush(self, book: ModelWriteState) -> bool:
        """One entry; whether it was written."""
        flight = book.pending
        if flight is None:
            wall = self._clock.wall()
            flight = book.prepare_entry(encode_entry(book.take_changes(), wall, wall - self._clock.now()))
        name = f"{book.epoch}-{flight.sequence}"
        trim = "" if flight.trim is None else f"{book.epoch}-{flight.trim}"
        after = encode_position(book.epoch, flight.sequence)
        reply = await self._eval(
            book,
            lua.WRITE,
            book.lease,
            book.position_value(),
            after,
            name,
            flight.data,
            trim,
            self._lease_ms,
            self._expire_ms,
        )
        if reply is None:
            return False
        if reply[0] == b"ok" or (reply[0] == b"moved" and bytes(reply[1]) == after):
            book.on_acknowledged()
            book.description = f"we lead, entry {name}"
            return True
        self._on_rejected(book, reply)
        return False

    async def _write_new_epoch(self, book: ModelWriteState) -> None:
        """Everything that the truth holds, in the epoch of the lease."""
        epoch = int(book.lease.partition(b":")[0])
        if epoch <= book.epoch:
            book.renew_at = 0.0  # the lease is of an epoch that was begun already
            return
        meta = IndexMeta(epoch, self.holder, self._clock.wall(), ready=False)
        reply = await self._eval(
            book, lua.BEGIN, book.lease, encode_position(epoch, 0), encode_value(meta), self._expire_ms
        )
        if reply is None or reply[0] != b"ok":
            if reply is not None:
                self._on_rejected(book, reply)
            return
        book.begin_epoch(epoch)
        for name in (*self._owner.instances(book.model_key), HINTS_ITEM):
            if not await self._write_item(book, name):
                book.require_new_epoch()
                return
            await self._write_waiting(book)  # all of a large index takes seconds, in which engines go on
            if book.needs_new_epoch or book.pending is not None:
                book.require_new_epoch()
                return
        if await self._finish_epoch(book, meta):
            book.description = f"we lead, entry {epoch}-{book.sequence}"
        else:
            book.require_new_epoch()

    async def _finish_epoch(self, book: ModelWriteState, meta: IndexMeta) -> bool:
        """Take away what earlier epochs left, and say that all is there."""
        _, idx, _ = redis_keys.index_keys(book.model_key)
        replies = await self._link.run([("HKEYS", idx)])
        if replies is None or not isinstance(replies[0], list):
            return False
        needed = {POSITION_FIELD, META_FIELD, HINTS_FIELD, STATUSES_FIELD}
        for name, item in book.items.items():
            needed.add(header_field(name))
            needed.update(field for _, field in item.parts.values())
        over = [field for field in replies[0] if field not in needed]
        book.meta = encode_value(msgspec.structs.replace(meta, ready=True))
        return await self._write_fields(book, {META_FIELD: book.meta}, over)

    async def _write_due(self, book: ModelWriteState) -> None:
        gone, book.obsolete_fields = book.obsolete_fields, []
        if gone and not await self._write_fields(book, {}, gone):
            book.require_new_epoch()
            return
        name = book.next_due_item()
        if name is not None and not await self._write_item(book, name):
            book.require_new_epoch()

    async def _write_statuses(self, book: ModelWriteState) -> None:
        """What is to be said of the instances, if it is something new."""
        book.statuses_at = self._clock.now() + self._limits.index_note_seconds
        told = {} if self._instance_statuses is None else dict(self._instance_statuses(book.model_key))
        if self._instance_statuses is None or (book.written_statuses == told and book.statuses_epoch == book.epoch):
            return
        data = encode_value(InstanceStatuses(book.epoch, self._clock.wall(), self._fingerprint, told))
        if await self._write_fields(book, {STATUSES_FIELD: data}, ()):
            book.written_statuses, book.statuses_epoch = told, book.epoch

    async def _write_item(self, book: ModelWriteState, name: str) -> bool:
        """One instance, or the hints, as of now; whether it was written. What was waiting is in it, and is told once more."""
        wall = self._clock.wall()
        ahead = wall - self._clock.now()
        if name == HINTS_ITEM:
            rows = encode_hints(self._owner.shared_store_hints(book.model_key), ahead)
            parts, fresh, over = book.place_parts(name, rows, sum(len(data) for data in rows.values()) // 16)
            header, field = encode_value(HintsHeader(book.epoch, book.sequence, parts)), HINTS_FIELD
        else:
            try:
                kept = self._owner.checkpoint(name)
            except KeyError:
                return True  # it has gone meanwhile
            size = sum(table.rows for table in kept.slice.tables)
            parts, fresh, over = book.place_parts(name, kept.rows, size)
            header = encode_value(InstanceHeader(book.epoch, book.sequence, kept.slice, parts, kept.position))
            field = header_field(name)
        return await self._write_fields(book, {**fresh, field: header}, over)

    async def _write_fields(self, book: ModelWriteState, fields: Mapping[bytes, bytes], over: Sequence[bytes]) -> bool:
        """Set fields, in the given order and a megabyte at a time, then take away those that are over."""
        some: dict[bytes, bytes] = {}
        size, left_over = 0, iter(over)
        for number, (field, data) in enumerate(fields.items(), 1):
            some[field] = data
            size += len(data)
            if size >= _BYTES_PER_WRITE and number < len(fields):
                if not await self._write_some_fields(book, some, ()):
                    return False
                some, size = {}, 0
        while True:
            gone = list(islice(left_over, _FIELDS_PER_DELETE))
            if (gone or some) and not await self._write_some_fields(book, some, gone):
                return False
            some = {}
            if len(gone) < _FIELDS_PER_DELETE:
                return True

    async def _write_some_fields(
        self, book: ModelWriteState, fields: Mapping[bytes, bytes], over: Sequence[bytes]
    ) -> bool:
        pairs = [value for pair in fields.items() for value in pair]
        reply = await self._eval(
            book, lua.KEEP, book.lease, book.position_value(), self._lease_ms, len(over), *over, *pairs
        )
        if reply is not None and reply[0] == b"ok":
            return True
        if reply is not None:
            self._on_rejected(book, reply)
        return False

    def _on_rejected(self, book: ModelWriteState, reply: Sequence[Any]) -> None:
        """The lease is over, or Redis is not where we left it: ask who leads, at once."""
        if reply[0] == b"moved":
            book.require_new_epoch()
        book.renew_at = 0.0

    async def _eval(self, book: ModelWriteState, script: str, *words: str | bytes | int) -> list[Any] | None:
        """The reply of a script; None when Redis is away or refuses."""
        try:
            replies = await self._link.run([("EVAL", script, 3, *redis_keys.index_keys(book.model_key), *words)])
        except (BadInput, UnreadableError):  # pragma: no cover - names were looked at in serve
            return None
        if replies is None:
            book.description = "Redis is away"
            return None
        reply = replies[0]
        if isinstance(reply, ResponseError):
            text = str(reply).splitlines()[0][:120]
            book.description = f"Redis refuses: {text}"
            if book.refused_since is None:
                book.refused_since = self._clock.now()
            if any(sign in text for sign in _DAMAGED_KEY_ERRORS):
                book.require_new_epoch()  # a key is not what it should be: a new epoch makes it so
                book.renew_at = 0.0
            return None
        book.refused_since = None
        return list(reply)
