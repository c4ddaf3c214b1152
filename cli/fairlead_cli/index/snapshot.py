"""A snapshot of one model's index in Redis: the blocks of its instances, and the other data.

That is the lease (which indexer writes), the headers of the instances, the indexer's notes, and the
ends of the stream.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

from redis.exceptions import ResponseError

from fairlead.errors import first_line
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_cli.exit_codes import UnusableIndex
from fairlead_cli.index.connection import run_commands, unreachable_error
from fairlead_kvstore.blockstore.changes import InstanceCleared
from fairlead_kvstore.blockstore.storage_tiers import is_shared_store, shared_store_id
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import (
    ENTRY_FIELD,
    META_FIELD,
    POSITION_FIELD,
    STATUSES_FIELD,
    IndexMeta,
    InstanceHeader,
    InstanceStatus,
    InstanceStatuses,
    decode_entry_with_time,
    decode_position,
    decode_value,
)
from fairlead_kvstore.index.loaded_index import LoadedIndex
from fairlead_kvstore.index.recovery import AWAY
from fairlead_kvstore.redis.link import RedisLink

_MAX_ATTEMPTS: Final = 10
_PAUSE_SECONDS: Final = 0.3
"""A new indexer writes everything first, and parts of an instance may be replaced during a read."""


@dataclass(frozen=True, slots=True)
class WriterLease:
    """The lease of the indexer that may write. ``seconds``: the time that remains."""

    epoch: int
    holder: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StreamTail:
    """The stream of changes: its length, first and last ``(epoch, sequence)``, and the time of the
    last entry (Unix).
    """

    entries: int = 0
    first: tuple[int, int] | None = None
    last: tuple[int, int] | None = None
    wall: float | None = None


@dataclass(slots=True)
class IndexSnapshot:
    """The index at one moment.

    wall, now: Unix time, and monotonic time. ``ahead``: Unix time minus monotonic time.

    loaded: None when the index cannot be loaded; ``problem`` says why.
    """

    model_key: str
    wall: float
    now: float
    ahead: float
    at: tuple[int, int] | None = None
    meta: IndexMeta | None = None
    lease: WriterLease | None = None
    tail: StreamTail = field(default_factory=StreamTail)
    notes: InstanceStatuses | None = None
    headers: dict[str, InstanceHeader] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    loaded: LoadedIndex | None = None
    problem: str = ""

    @property
    def index(self) -> LoadedIndex:
        """The loaded index. Raises UnusableIndex when it cannot be loaded."""
        if self.loaded is None:
            hint = "gateways read engines themselves; the leading indexer rewrites the index if needed"
            raise UnusableIndex(f"the index of {self.model_key} cannot be read: {self.problem}", hint=hint)
        return self.loaded

    @property
    def instances(self) -> list[str]:
        """Ids of all instances in the index, notes or headers, sorted; no shared store."""
        noted = self.notes.instances if self.notes is not None else {}
        loaded = self.loaded.instances() if self.loaded is not None else ()
        names = {*loaded, *noted, *self.headers, *self.unreadable}
        return sorted(name for name in names if not is_shared_store(name))

    def note(self, instance: str) -> InstanceStatus | None:
        """Returns the indexer's note on an instance, or None."""
        return None if self.notes is None else self.notes.instances.get(instance)

    def block_size(self, instance: str) -> int | None:
        """Returns the tokens of one block of an instance; None while unknown."""
        note, header = self.note(instance), self.headers.get(instance)
        noted = None if note is None else note.block_size
        return noted or (None if header is None else header.slice.block_size)

    @property
    def last_written(self) -> float | None:
        """Unix time of the last write; None while unknown."""
        sources = (self.notes, self.meta)
        times = [self.tail.wall, *(source.wall for source in sources if source is not None)]
        return max((source for source in times if source is not None), default=None)


async def take_snapshot(link: RedisLink, model_key: str, clock: Clock) -> IndexSnapshot:
    """Returns the index of a model as it is now; waits some seconds if an indexer is writing it.

    Raises IndexUnreachable.
    """
    for attempt in range(_MAX_ATTEMPTS):
        snapshot = await _read_once(link, model_key, clock)
        if snapshot.loaded is not None or snapshot.lease is None or attempt == _MAX_ATTEMPTS - 1:
            break
        await asyncio.sleep(_PAUSE_SECONDS)
    return snapshot


async def _read_once(link: RedisLink, model_key: str, clock: Clock) -> IndexSnapshot:
    now, unix_now = clock.now(), clock.wall()
    snapshot = IndexSnapshot(model_key, unix_now, now, unix_now - now)
    lease_key, idx, ev = redis_keys.index_keys(model_key)
    replies = await run_commands(
        link,
        ("HMGET", idx, POSITION_FIELD, META_FIELD, STATUSES_FIELD),
        ("GET", lease_key),
        ("PTTL", lease_key),
        ("XLEN", ev),
        ("XRANGE", ev, "-", "+", "COUNT", 1),
        ("XREVRANGE", ev, "+", "-", "COUNT", 1),
    )
    for reply in replies:
        if isinstance(reply, ResponseError):
            snapshot.problem = f"Redis refuses: {first_line(reply)}"
            return snapshot
    (at, meta, notes), lease, lease_milliseconds, length, first, last = replies
    snapshot.at, snapshot.lease = decode_position(at), parse_lease(lease, lease_milliseconds)
    snapshot.meta = _decode_field(snapshot, "meta", meta, IndexMeta)
    snapshot.notes = _decode_field(snapshot, "notes", notes, InstanceStatuses)
    try:
        snapshot.tail = StreamTail(int(length), _entry_id(first), _entry_id(last), _entry_time(last))
    except (UnreadableError, KeyError, TypeError, IndexError, ValueError) as error:
        snapshot.unreadable["the last entry"] = str(error)[:120]
    loaded = LoadedIndex()
    try:
        await loaded.load(link, model_key, snapshot.ahead)
        snapshot.loaded = loaded
    except UnreadableError as error:
        if error.reason == AWAY:
            raise unreachable_error(link) from None
        snapshot.problem = error.message
    is_known = [
        name for name, header in loaded.headers.items() if snapshot.at is None or header.epoch == snapshot.at[0]
    ]
    snapshot.headers = {name: loaded.headers[name] for name in is_known}
    snapshot.unreadable |= loaded.unreadable
    if unix_now - (snapshot.last_written or 0.0) > Limits().kv_shared_seconds:  # nothing expires meanwhile
        loaded.apply([InstanceCleared(shared_store_id(model_key), 0, "no indexer writes")])
    return snapshot


def parse_lease(data: Any, milliseconds: Any) -> WriterLease | None:
    """Returns the lease by its value in Redis and remaining milliseconds; None if invalid."""
    if not isinstance(data, bytes) or not isinstance(milliseconds, int):
        return None
    epoch, colon, holder = data.partition(b":")
    if not colon or not epoch.isdigit() or len(epoch) > 20:
        return None
    return WriterLease(int(epoch), holder.decode("utf-8", "replace")[:256], max(0, milliseconds) / 1e3)


def _decode_field(snapshot: IndexSnapshot, name: str, data: Any, type_: type[Any]) -> Any:
    if data is None:
        return None
    try:
        return decode_value(data, type_)
    except UnreadableError as error:
        snapshot.unreadable[name] = error.message
        return None


def _entry_time(reply: Any) -> float | None:
    return decode_entry_with_time(reply[0][1][ENTRY_FIELD], 0.0)[0] if reply else None


def _entry_id(reply: Any) -> tuple[int, int] | None:
    if not reply:
        return None
    epoch, _, sequence = bytes(reply[0][0]).partition(b"-")
    return int(epoch), int(sequence)
