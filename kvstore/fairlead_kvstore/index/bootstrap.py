"""A mirror out of what is in Redis: the parts of every instance, then all changes that are still in the stream.

Not only those since the oldest part: an instance that is new is in the stream alone until it is written down for the first time,
and the stream is never cut past that. Changes that are in a part already are told again, in their order, which does no harm.
While it is read, the writer goes on: it may replace an instance's parts between their names and themselves. Then the instance is
asked for once more. What cannot be read is not credited, and is said to be unknown.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from redis.exceptions import ResponseError

from fairlead.limits import Limits
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
    decode_entry,
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

ENTRIES_PER_READ: Final = 256
_MAX_ATTEMPTS: Final = 3


class LoadedIndex(msgspec.Struct):
    """A mirror as of ``epoch`` and ``sequence``; ``unreadable``: instances of which nothing is credited, with why."""

    mirror: IndexReplica
    epoch: int
    sequence: int
    unreadable: dict[str, str]


class LoadFailure(msgspec.Struct):
    """Why there is none, for people."""

    why: str


_REDIS_AWAY: Final = LoadFailure("Redis is away")


async def load_index(
    link: RedisLink, model_key: str, wall_offset: float, now: float, limits: Limits
) -> LoadedIndex | LoadFailure:
    """The model's index as it is now. ``ahead``: Unix time less monotonic time; ``now``: monotonic seconds."""
    _, idx, ev = redis_keys.index_keys(model_key)
    replies = await link.run(
        [("HMGET", idx, POSITION_FIELD, META_FIELD), ("HKEYS", idx), ("XRANGE", ev, "-", "+", "COUNT", 1)]
    )
    if replies is None:
        return _REDIS_AWAY
    if any(isinstance(reply, ResponseError) for reply in replies):
        return LoadFailure("the index in Redis is not what it should be")
    (at_data, meta_data), names, oldest = replies
    at = decode_position(at_data)
    found = unreadable_reason(at, meta_data)
    if at is None or found is not None:
        return LoadFailure(found or "Redis holds no index")
    loaded = LoadedIndex(IndexReplica(limits=limits), at[0], _sequence_before_stream(oldest, at), {})
    for field in sorted(names):
        instance = header_instance(field)
        if instance is None and field != HINTS_FIELD:
            continue
        away = await _load_instance(link, idx, field, instance, loaded, model_key, wall_offset)
        if away is not None:
            return away
    why = await _apply_stream(link, model_key, at[1], loaded, wall_offset, limits)
    if why is not None:
        return why
    loaded.mirror.expire(now)
    return loaded


def _sequence_before_stream(oldest: Any, at: tuple[int, int]) -> int:
    """The sequence before the first entry that the stream still has; of an earlier epoch there is none."""
    try:
        epoch, _, sequence = bytes(oldest[0][0]).partition(b"-")
        return int(sequence) - 1 if int(epoch) == at[0] else 0
    except (TypeError, ValueError, IndexError):
        return at[1]  # it is empty, or no stream, which shows as soon as it is read


def unreadable_reason(at: tuple[int, int] | None, meta_data: Any) -> str | None:
    """Why an index cannot be read just now; None when it can."""
    if at is None or not isinstance(meta_data, bytes):
        return "Redis holds no index"
    try:
        meta = decode_value(meta_data, IndexMeta)
    except UnreadableError as error:
        return f"what Redis holds cannot be read: {error.message}"
    if meta.epoch != at[0]:
        return "the index in Redis is of two indexers"
    return None if meta.ready else f"{meta.holder} is writing the index down"


def parse_entries(reply: Any) -> list[tuple[int, int, bytes]]:
    """Epoch, sequence and bytes of each entry in the reply to an XREAD of one stream. Raises UnreadableError."""
    found = []
    try:
        for name, values in reply[0][1] if reply else ():
            epoch, _, sequence = bytes(name).partition(b"-")
            found.append((int(epoch), int(sequence), bytes(values[ENTRY_FIELD])))
    except (TypeError, ValueError, KeyError, IndexError):
        raise UnreadableError("an entry is not what it should be", reason="shape") from None
    return found


def read_command(model_key: str, epoch: int, sequence: int) -> Command:
    """Ask for the entries that follow."""
    _, _, ev = redis_keys.index_keys(model_key)
    return ("XREAD", "COUNT", ENTRIES_PER_READ, "STREAMS", ev, f"{epoch}-{sequence}")


def wait_command(places: Mapping[str, tuple[int, int]], seconds: float) -> Command:
    """The same of several models (by key, where each is: epoch and sequence); wait so long, at least a millisecond, for the first."""
    names = [redis_keys.index_keys(model_key)[2] for model_key in places]
    at = [f"{epoch}-{sequence}" for epoch, sequence in places.values()]
    return ("XREAD", "COUNT", ENTRIES_PER_READ, "BLOCK", max(1, int(seconds * 1000)), "STREAMS", *names, *at)


def decode_changes(data: bytes, model_key: str, wall_offset: float, limits: Limits) -> list[Change]:
    """What one entry tells. Raises UnreadableError."""
    if len(data) > limits.index_entry_bytes:
        raise UnreadableError(f"an entry of {len(data)} bytes is not read", reason="bytes")
    return decode_entry(data, model_key, wall_offset)


async def _load_instance(
    link: RedisLink, idx: str, field: bytes, instance: str | None, loaded: LoadedIndex, model_key: str, ahead: float
) -> LoadFailure | None:
    """Load one instance, or the hints."""
    why = ""
    for _ in range(_MAX_ATTEMPTS):
        values = await read_fields(link, idx, [field])
        if values is None:
            return _REDIS_AWAY
        if values[0] is None:
            return None  # it is gone
        try:
            header: Any = decode_value(values[0], HintsHeader if instance is None else InstanceHeader)
        except UnreadableError as error:
            why = error.message
            break
        if header.epoch != loaded.epoch:
            return None  # of an earlier indexer, to be taken away
        wanted = [name for part, name in header.parts.items() if instance is None or ".m" in part]
        parts = await read_fields(link, idx, wanted)
        if parts is None:
            return _REDIS_AWAY
        if None in parts:
            why = "a part of it is missing"
            continue
        try:
            _apply_parts(loaded.mirror, instance, header, parts, model_key, ahead)
        except (UnreadableError, SnapshotError) as error:
            why = error.message
            break
        return None
    name = instance or "hints"
    loaded.unreadable[name] = why
    if instance is not None:
        loaded.mirror.apply(
            [CompletenessChanged(instance, False, f"what was written of it cannot be read: {why}", 0.0)]
        )
    return None


def _apply_parts(
    mirror: IndexReplica, instance: str | None, header: Any, parts: Sequence[bytes], model_key: str, ahead: float
) -> None:
    columns = [decode_part(data) for data in parts]
    if instance is None:
        for data in columns:
            mirror.apply([HintsAdded(model_key, [own], until) for own, until in decode_hints(data, ahead)])
        return
    for owns, counts in [decode_replica_part(data) for data in columns]:
        mirror.load_rows(instance, owns, counts)
    kept = header.slice
    complete, reason, since = kept.completeness()
    mirror.apply([CompletenessChanged(instance, complete, reason, since + kept.wall - ahead)])


async def _apply_stream(
    link: RedisLink, model_key: str, upto: int, loaded: LoadedIndex, ahead: float, limits: Limits
) -> LoadFailure | None:
    """Apply what came after; at least up to ``upto``."""
    while True:
        replies = await link.run([read_command(model_key, loaded.epoch, loaded.sequence)])
        if replies is None:
            return _REDIS_AWAY
        if isinstance(replies[0], ResponseError):
            return LoadFailure("the stream of changes in Redis is not what it should be")
        try:
            some = parse_entries(replies[0])
            for epoch, sequence, data in some:
                if (epoch, sequence) != (loaded.epoch, loaded.sequence + 1):
                    return LoadFailure("the stream of changes went on meanwhile")
                loaded.mirror.apply(decode_changes(data, model_key, ahead, limits))
                loaded.sequence = sequence
        except UnreadableError as error:
            return LoadFailure(f"entry {loaded.epoch}-{loaded.sequence + 1} cannot be read: {error.message}")
        if not some:
            done = loaded.sequence >= upto
            return None if done else LoadFailure("entries of the stream of changes are missing")
