"""Loads a replica from Redis: the snapshot of every instance, then all changes in the stream.

All changes are needed, not only those since the oldest snapshot. A new instance is only in the
stream until its first snapshot, and the stream is never cut before that. A change that is in a
snapshot already is applied again, in order, which does no harm. The writer continues during the
load and may replace an instance's parts after their names were read. The instance is then read
again. Values that cannot be read are left out, and the instance is marked incomplete.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from redis.exceptions import ResponseError

from fairlead_kvstore.blockstore.changes import Change, CompletenessChanged, HintsAdded
from fairlead_kvstore.blockstore.snapshot import decode_replica_part
from fairlead_kvstore.errors import SnapshotError, UnreadableError
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import (
    ENTRY_FIELD,
    HINTS_FIELD,
    META_FIELD,
    POSITION_FIELD,
    HintsHeader,
    IndexMeta,
    InstanceHeader,
    decode_entry_with_time,
    decode_header,
    decode_hints,
    decode_part,
    decode_position,
    decode_value,
    header_instance,
)
from fairlead_kvstore.index.recovery import read_fields
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink

INDEX_ENTRY_BYTES: Final = 8 * 1024 * 1024
"""Limit: an entry of that stream; a longer one is damaged."""

ENTRIES_PER_READ: Final = 256
_MAX_ATTEMPTS: Final = 3


class LoadedIndex(msgspec.Struct, rename={"replica": "mirror"}):
    """A loaded replica, as of ``epoch`` and ``sequence``.

    unreadable: instances whose blocks could not be read, and why.
    """

    replica: IndexReplica
    epoch: int
    sequence: int
    unreadable: dict[str, str]


class LoadFailure(msgspec.Struct):
    """A failed load, with its reason as text."""

    why: str


_REDIS_AWAY: Final = LoadFailure("Redis is away")


async def load_index(link: RedisLink, model_key: str, wall_offset: float, now: float) -> LoadedIndex | LoadFailure:
    """Returns a replica of a model's current index, or why it cannot be loaded.

    wall_offset: Unix time minus monotonic time. now: monotonic seconds.
    """
    _, idx, ev = redis_keys.index_keys(model_key)
    replies = await link.run(
        [("HMGET", idx, POSITION_FIELD, META_FIELD), ("HKEYS", idx), ("XRANGE", ev, "-", "+", "COUNT", 1)]
    )
    if replies is None:
        return _REDIS_AWAY
    if any(isinstance(reply, ResponseError) for reply in replies):
        return LoadFailure("the index in Redis has a wrong type")
    (at_data, meta_data), names, oldest = replies
    at = decode_position(at_data)
    found = unreadable_reason(at, meta_data)
    if at is None or found is not None:
        return LoadFailure(found or "Redis has no index")
    loaded = LoadedIndex(IndexReplica(), at[0], _sequence_before_stream(oldest, at), {})
    for field in sorted(names):
        if header_instance(field) is None and field != HINTS_FIELD:
            continue
        away = await _load_instance(link, model_key, field, loaded, wall_offset)
        if away is not None:
            return away
    why = await _apply_stream(link, model_key, at[1], loaded, wall_offset)
    if why is not None:
        return why
    loaded.replica.expire(now)
    return loaded


def _sequence_before_stream(oldest: Any, at: tuple[int, int]) -> int:
    """Returns the sequence before the stream's first entry; 0 if that entry is of another epoch."""
    try:
        epoch, _, sequence = bytes(oldest[0][0]).partition(b"-")
        return int(sequence) - 1 if int(epoch) == at[0] else 0
    except (TypeError, ValueError, IndexError):
        return at[1]  # an empty stream, or none, which the read shows


def unreadable_reason(at: tuple[int, int] | None, meta_data: Any) -> str | None:
    """Returns why an index cannot be read now; None when it can."""
    if at is None or not isinstance(meta_data, bytes):
        return "Redis has no index"
    try:
        meta = decode_value(meta_data, IndexMeta)
    except UnreadableError as error:
        return f"the index in Redis cannot be read: {error.message}"
    if meta.epoch != at[0]:
        return "the index in Redis has two epochs"
    return None if meta.ready else f"{meta.holder} is writing the index"


def parse_entries(reply: Any) -> list[tuple[int, int, bytes]]:
    """Returns epoch, sequence and bytes of each entry in an XREAD reply. Raises UnreadableError."""
    found = []
    try:
        for name, values in reply[0][1] if reply else ():
            epoch, _, sequence = bytes(name).partition(b"-")
            found.append((int(epoch), int(sequence), bytes(values[ENTRY_FIELD])))
    except (TypeError, ValueError, KeyError, IndexError):
        raise UnreadableError("an entry has a wrong type", reason="shape") from None
    return found


def read_command(model_key: str, epoch: int, sequence: int) -> Command:
    """Returns the command that reads the entries after ``sequence`` without waiting."""
    _, _, ev = redis_keys.index_keys(model_key)
    return ("XREAD", "COUNT", ENTRIES_PER_READ, "STREAMS", ev, f"{epoch}-{sequence}")


def wait_command(positions: Mapping[str, tuple[int, int]], seconds: float) -> Command:
    """Returns the command that waits for the next entries of several models.

    positions: epoch and sequence by model. seconds: the longest wait, at least a millisecond.
    """
    names = [redis_keys.index_keys(model_key)[2] for model_key in positions]
    at = [f"{epoch}-{sequence}" for epoch, sequence in positions.values()]
    return ("XREAD", "COUNT", ENTRIES_PER_READ, "BLOCK", max(1, int(seconds * 1000)), "STREAMS", *names, *at)


def decode_changes(data: bytes, model_key: str, wall_offset: float) -> list[Change]:
    """Returns the changes in the bytes of one entry, with times in monotonic seconds. Raises
    UnreadableError.
    """
    if len(data) > INDEX_ENTRY_BYTES:
        raise UnreadableError(f"an entry of {len(data)} bytes is too large", reason="bytes")
    return decode_entry_with_time(data, model_key, wall_offset)[1]


async def _load_instance(
    link: RedisLink, model_key: str, field: bytes, loaded: LoadedIndex, wall_offset: float
) -> LoadFailure | None:
    """Loads the instance or the hints whose header is in ``field``. Returns the failure if Redis is
    unreachable; unreadable values are recorded in ``loaded``.
    """
    _, idx, _ = redis_keys.index_keys(model_key)
    instance = header_instance(field)
    why = ""
    for _ in range(_MAX_ATTEMPTS):
        values = await read_fields(link, idx, [field])
        if values is None:
            return _REDIS_AWAY
        if values[0] is None:
            return None  # it was removed
        try:
            header: Any = decode_header(values[0], HintsHeader if instance is None else InstanceHeader)
        except UnreadableError as error:
            why = error.message
            break
        if header.epoch != loaded.epoch:
            return None  # of an earlier epoch, to be deleted
        wanted = [name for part, name in header.parts.items() if instance is None or ".m" in part]
        parts = await read_fields(link, idx, wanted)
        if parts is None:
            return _REDIS_AWAY
        if None in parts:
            why = "a part of it is missing"
            continue
        try:
            _apply_parts(loaded.replica, instance, header, parts, model_key, wall_offset)
        except (UnreadableError, SnapshotError) as error:
            why = error.message
            break
        return None
    name = instance or "hints"
    loaded.unreadable[name] = why
    if instance is not None:
        loaded.replica.apply([CompletenessChanged(instance, False, f"its snapshot cannot be read: {why}", 0.0)])
    return None


def _apply_parts(
    replica: IndexReplica, instance: str | None, header: Any, parts: Sequence[bytes], model_key: str, wall_offset: float
) -> None:
    columns = [decode_part(data) for data in parts]
    if instance is None:
        for data in columns:
            replica.apply(
                [HintsAdded(model_key, [block_hash], until) for block_hash, until in decode_hints(data, wall_offset)]
            )
        return
    for block_hashes, counts in [decode_replica_part(data) for data in columns]:
        replica.load_rows(instance, block_hashes, counts)
    snapshot = header.slice
    complete, reason, since = snapshot.completeness()
    replica.apply([CompletenessChanged(instance, complete, reason, since + snapshot.wall - wall_offset)])


async def _apply_stream(
    link: RedisLink, model_key: str, upto: int, loaded: LoadedIndex, wall_offset: float
) -> LoadFailure | None:
    """Applies the entries of the stream, at least up to ``upto``. Returns the failure if that is
    not possible, else None.
    """
    while True:
        replies = await link.run([read_command(model_key, loaded.epoch, loaded.sequence)])
        if replies is None:
            return _REDIS_AWAY
        if isinstance(replies[0], ResponseError):
            return LoadFailure("the stream of changes in Redis has a wrong type")
        try:
            entries = parse_entries(replies[0])
            for epoch, sequence, data in entries:
                if (epoch, sequence) != (loaded.epoch, loaded.sequence + 1):
                    return LoadFailure("the stream of changes has a gap")
                loaded.replica.apply(decode_changes(data, model_key, wall_offset))
                loaded.sequence = sequence
        except UnreadableError as error:
            return LoadFailure(f"entry {loaded.epoch}-{loaded.sequence + 1} cannot be read: {error.message}")
        if not entries:
            done = loaded.sequence >= upto
            return None if done else LoadFailure("entries of the stream of changes are missing")
