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
from fairlead_cli.index.connection import run_commands
from fairlead_cli.index.loaded_index import LoadedIndex
from fairlead_kvstore.blockstore.changes import InstanceCleared
from fairlead_kvstore.blockstore.storage_tiers import is_shared_store, shared_store_id
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import (
    ENTRY_FIELD,
    STATUSES_FIELD,
    InstanceStatus,
    InstanceStatuses,
    decode_entry_with_time,
    decode_value,
)
from fairlead_kvstore.redis.link import RedisLink

_MAX_ATTEMPTS: Final = 10
_PAUSE_SECONDS: Final = 0.3
"""A new indexer writes everything first, and parts of an instance may be replaced during a read."""


@dataclass(slots=True)
class IndexSnapshot:
    """The index at one moment.

    wall, now: Unix time, and monotonic time. ``ahead``: Unix time minus monotonic time.

    leader: the indexer that may write, for ``lease_seconds`` more; None without one.

    entries, entry_wall: the length of the stream of changes, and Unix time of the last entry.

    problem: why the index cannot be used; ``content`` then has what could be read.
    """

    model_key: str
    wall: float
    now: float
    ahead: float
    content: LoadedIndex = field(default_factory=LoadedIndex)
    leader: str | None = None
    lease_seconds: float | None = None
    entries: int = 0
    entry_wall: float | None = None
    notes: InstanceStatuses | None = None
    problem: str = ""

    @property
    def loaded(self) -> LoadedIndex | None:
        """The loaded index; None when it cannot be used."""
        return None if self.problem else self.content

    @property
    def index(self) -> LoadedIndex:
        """The loaded index. Raises UnusableIndex when it cannot be loaded."""
        if self.problem:
            hint = "gateways read engines themselves; the leading indexer rewrites the index if needed"
            raise UnusableIndex(f"the index of {self.model_key} cannot be read: {self.problem}", hint=hint)
        return self.content

    @property
    def instances(self) -> list[str]:
        """Ids of all instances in the index, notes or headers, sorted; no shared store."""
        noted = self.notes.instances if self.notes is not None else {}
        loaded = self.loaded.instances() if self.loaded is not None else ()
        names = {*loaded, *noted, *self.content.headers, *self.content.unreadable}
        return sorted(name for name in names if not is_shared_store(name))

    def note(self, instance: str) -> InstanceStatus | None:
        """Returns the indexer's note on an instance, or None."""
        return None if self.notes is None else self.notes.instances.get(instance)

    def block_size(self, instance: str) -> int | None:
        """Returns the tokens of one block of an instance; None while unknown."""
        note, header = self.note(instance), self.content.headers.get(instance)
        noted = None if note is None else note.block_size
        return noted or (None if header is None else header.slice.block_size)

    @property
    def last_written(self) -> float | None:
        """Unix time of the last write; None while unknown."""
        sources = (self.notes, self.content.meta)
        times = [self.entry_wall, *(source.wall for source in sources if source is not None)]
        return max((source for source in times if source is not None), default=None)


async def take_snapshot(link: RedisLink, model_key: str, clock: Clock) -> IndexSnapshot:
    """Returns the index of a model as it is now; waits some seconds if an indexer is writing it.

    Raises IndexUnreachable.
    """
    for attempt in range(_MAX_ATTEMPTS):
        snapshot = await _read_once(link, model_key, clock)
        if not snapshot.problem or snapshot.leader is None or attempt == _MAX_ATTEMPTS - 1:
            break
        await asyncio.sleep(_PAUSE_SECONDS)
    return snapshot


async def _read_once(link: RedisLink, model_key: str, clock: Clock) -> IndexSnapshot:
    now, unix_now = clock.now(), clock.wall()
    snapshot = IndexSnapshot(model_key, unix_now, now, unix_now - now)
    lease_key, idx, ev = redis_keys.index_keys(model_key)
    replies = await run_commands(
        link,
        ("HGET", idx, STATUSES_FIELD),
        ("GET", lease_key),
        ("PTTL", lease_key),
        ("XLEN", ev),
        ("XREVRANGE", ev, "+", "-", "COUNT", 1),
    )
    for reply in replies:
        if isinstance(reply, ResponseError):
            snapshot.problem = f"Redis refuses: {first_line(reply)}"
            return snapshot
    notes, lease, lease_milliseconds, snapshot.entries, last = replies
    snapshot.leader = parse_holder(lease)
    if snapshot.leader is not None:
        snapshot.lease_seconds = max(0, lease_milliseconds) / 1e3
    try:
        await snapshot.content.load(link, model_key, snapshot.ahead)
    except UnreadableError as error:
        snapshot.problem = error.message
    unreadable = snapshot.content.unreadable
    try:
        snapshot.notes = None if notes is None else decode_value(notes, InstanceStatuses)
    except UnreadableError as error:
        unreadable["notes"] = error.message
    try:
        snapshot.entry_wall = decode_entry_with_time(last[0][1][ENTRY_FIELD], 0.0)[0] if last else None
    except (UnreadableError, KeyError, TypeError, IndexError) as error:
        unreadable["the last entry"] = str(error)[:120]
    if unix_now - (snapshot.last_written or 0.0) > Limits().kv_shared_seconds:  # nothing expires meanwhile
        snapshot.content.apply([InstanceCleared(shared_store_id(model_key), 0, "no indexer writes")])
    return snapshot


def parse_holder(lease: Any) -> str | None:
    """Returns the indexer that has a lease, by its value in Redis; None if that is invalid."""
    epoch, colon, holder = lease.partition(b":") if isinstance(lease, bytes) else (b"", b"", b"")
    if not colon or not epoch.isdigit() or len(epoch) > 20:
        return None
    return str(holder.decode("utf-8", "replace")[:256])
