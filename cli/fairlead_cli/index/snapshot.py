"""One model's index as Redis has it at this moment: the mirror that a gateway would make of it, and everything around it.

The mirror is loaded by the very code that gateways use, so that what is told here is what they see. Beside it are read the lease
(who writes), the headers of the instances, what the indexer notes of them, and the ends of the stream.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from redis.exceptions import ResponseError

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_cli.errors import UnusableIndex
from fairlead_cli.index.connection import unreachable_error
from fairlead_kvstore.analysis.replication_hints import ReplicationHints, decode_replication_hints
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index.bootstrap import LoadedIndex, LoadFailure, load_index
from fairlead_kvstore.index.format import (
    ENTRY_FIELD,
    META_FIELD,
    POSITION_FIELD,
    IndexMeta,
    InstanceHeader,
    decode_entry_with_time,
    decode_position,
    decode_value,
    header_instance,
)
from fairlead_kvstore.index.instance_status import STATUSES_FIELD, InstanceStatus, InstanceStatuses
from fairlead_kvstore.index.recovery import read_fields
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_kvstore.redis import keys
from fairlead_kvstore.redis.link import RedisLink

_MAX_ATTEMPTS: Final = 10
_PAUSE_SECONDS: Final = 0.3
"""An indexer that has just begun writes everything down first, and an instance's parts may be replaced while they are read."""
_HEADER_BATCH: Final = 64

Sleep = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class WriterLease:
    """Who may write, and for how long without another word."""

    epoch: int
    holder: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StreamTail:
    """The stream of changes: how long it is, its first and last ``(epoch, sequence)``, and when the last was written (Unix)."""

    entries: int = 0
    first: tuple[int, int] | None = None
    last: tuple[int, int] | None = None
    wall: float | None = None


@dataclass(slots=True)
class IndexSnapshot:
    """``ahead``: Unix time less monotonic time. ``loaded`` is None when no mirror can be made, for ``trouble``."""

    model_key: str
    wall: float
    now: float
    ahead: float
    at: tuple[int, int] | None = None
    meta: IndexMeta | None = None
    lease: WriterLease | None = None
    tail: StreamTail = field(default_factory=StreamTail)
    notes: InstanceStatuses | None = None
    hints: ReplicationHints | None = None
    headers: dict[str, InstanceHeader] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    loaded: LoadedIndex | None = None
    problem: str = ""

    @property
    def mirror(self) -> IndexReplica:
        """What gateways have. Raises BadIndex."""
        if self.loaded is None:
            hint = "gateways go on with what they had; an indexer that leads writes everything anew when it must"
            raise UnusableIndex(f"the index of {self.model_key} cannot be read: {self.problem}", hint=hint)
        return self.loaded.mirror

    @property
    def instances(self) -> list[str]:
        """All that are known of, by any source."""
        noted = self.notes.instances if self.notes is not None else {}
        told = self.loaded.mirror.instances() if self.loaded is not None else ()
        return sorted({*told, *noted, *self.headers, *self.unreadable} - {"hints"})

    def note(self, instance: str) -> InstanceStatus | None:
        """What the indexer says of it; None when it says nothing."""
        return None if self.notes is None else self.notes.instances.get(instance)

    def block_size(self, instance: str) -> int | None:
        """The tokens of one of its blocks; None when nothing of it was seen yet."""
        note, header = self.note(instance), self.headers.get(instance)
        noted = None if note is None else note.block_size
        return noted or (None if header is None else header.slice.block_size)

    @property
    def last_written(self) -> float | None:
        """When something was last written, Unix seconds."""
        told = (self.notes, self.meta)
        times = [self.tail.wall, *(one.wall for one in told if one is not None)]
        return max((one for one in times if one is not None), default=None)


async def take_snapshot(
    link: RedisLink, model_key: str, clock: Clock, limits: Limits, sleep: Sleep = asyncio.sleep
) -> IndexSnapshot:
    """How it is now; for some seconds an indexer that is writing it down is waited for. Raises NoIndex."""
    for attempt in range(_MAX_ATTEMPTS):
        picture = await _read_once(link, model_key, clock, limits)
        if picture.loaded is not None or picture.lease is None or attempt == _MAX_ATTEMPTS - 1:
            break
        await sleep(_PAUSE_SECONDS)
    return picture


async def _read_once(link: RedisLink, model_key: str, clock: Clock, limits: Limits) -> IndexSnapshot:
    now, wall = clock.now(), clock.wall()
    picture = IndexSnapshot(model_key, wall, now, wall - now)
    own, idx, ev = keys.index_keys(model_key)
    replies = await link.run(
        [
            ("HMGET", idx, POSITION_FIELD, META_FIELD, STATUSES_FIELD),
            ("GET", own),
            ("PTTL", own),
            ("XLEN", ev),
            ("XRANGE", ev, "-", "+", "COUNT", 1),
            ("XREVRANGE", ev, "+", "-", "COUNT", 1),
            ("HKEYS", idx),
            ("GET", keys.replication_hints(model_key)),
        ]
    )
    if replies is None:
        raise unreachable_error(link)
    for reply in replies:
        if isinstance(reply, ResponseError):
            picture.problem = f"Redis refuses: {str(reply).splitlines()[0][:120]}"
            return picture
    (at, meta, notes), lease, left, length, first, last, names, hints = replies
    picture.hints = decode_replication_hints(hints)
    picture.at, picture.lease = decode_position(at), parse_lease(lease, left)
    picture.meta = _decode_field(picture, "meta", meta, IndexMeta)
    picture.notes = _decode_field(picture, "notes", notes, InstanceStatuses)
    try:
        picture.tail = StreamTail(int(length), _entry_id(first), _entry_id(last), _entry_time(last, model_key))
    except (UnreadableError, KeyError, TypeError, IndexError, ValueError) as error:
        picture.unreadable["the last entry"] = str(error)[:120]
    await _headers(link, idx, picture, sorted(names))
    found = await load_index(link, model_key, picture.ahead, now, limits)
    if isinstance(found, LoadFailure):
        picture.problem = found.why
    else:
        picture.loaded = found
        picture.unreadable |= found.unreadable
    return picture


async def _headers(link: RedisLink, idx: str, picture: IndexSnapshot, names: list[bytes]) -> None:
    """Of the instances that count, which is those of the present epoch."""
    wanted = [name for name in names if header_instance(name) is not None]
    for start in range(0, len(wanted), _HEADER_BATCH):
        some = wanted[start : start + _HEADER_BATCH]
        values = await read_fields(link, idx, some)
        if values is None:
            raise unreachable_error(link)
        for name, data in zip(some, values, strict=True):
            instance = header_instance(name) or ""
            header = _decode_field(picture, instance, data, InstanceHeader)
            if header is not None and (picture.at is None or header.epoch == picture.at[0]):
                picture.headers[instance] = header


def parse_lease(data: Any, milliseconds: Any) -> WriterLease | None:
    """The lease, if there is one."""
    if not isinstance(data, bytes) or not isinstance(milliseconds, int):
        return None
    epoch, colon, holder = data.partition(b":")
    if not colon or not epoch.isdigit() or len(epoch) > 20:
        return None
    return WriterLease(int(epoch), holder.decode("utf-8", "replace")[:256], max(0, milliseconds) / 1e3)


def _decode_field(picture: IndexSnapshot, name: str, data: Any, kind: type[Any]) -> Any:
    if data is None:
        return None
    try:
        return decode_value(data, kind)
    except UnreadableError as error:
        picture.unreadable[name] = error.message
        return None


def _entry_time(reply: Any, model_key: str) -> float | None:
    return decode_entry_with_time(reply[0][1][ENTRY_FIELD], model_key, 0.0)[0] if reply else None


def _entry_id(reply: Any) -> tuple[int, int] | None:
    if not reply:
        return None
    epoch, _, sequence = bytes(reply[0][0]).partition(b"-")
    return int(epoch), int(sequence)
