"""Reads the state of a model that an indexer left in Redis, from which the next one continues, each
gateway that starts, and `fairlead index`.
"""

import asyncio
from collections.abc import Generator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import msgspec

from fairlead_kvstore.blockstore.block_table import BlockTable
from fairlead_kvstore.blockstore.snapshot import RowParts, table_steps
from fairlead_kvstore.blockstore.types import InstanceSnapshot
from fairlead_kvstore.errors import SnapshotError, UnreadableError
from fairlead_kvstore.events.types import StreamPosition
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import (
    STATUSES_FIELD,
    InstanceHeader,
    InstanceStatuses,
    decode_header,
    decode_part,
    decode_value,
    header_field,
    header_instance,
)

if TYPE_CHECKING:  # without Redis, its client is not loaded
    from fairlead_kvstore.redis.backends import Command
    from fairlead_kvstore.redis.link import RedisLink

_STEPS_PER_TURN: Final = 2
_STEPS_PER_RENEWAL: Final = 16
"""Steps of a restore between two renewals of the lease: some 50 ms of its own."""
_PARTS_PER_READ: Final = 10
"""The parts of one read; each has at most some 100 kB."""
AWAY, GONE = "away", "gone"
_MAX_ATTEMPTS: Final = 3
"""Reads of an instance whose parts another process replaces meanwhile."""


class InstanceCheckpoint(msgspec.Struct):
    """The state of one instance for the next indexer: its snapshot, rows and stream position.

    table: the one that was restored, in place of the rows.
    is_partial: a part of a batch is applied. Then it has no position, since the next indexer can
    neither repeat the part nor leave it out.
    """

    slice: InstanceSnapshot
    rows: RowParts
    position: StreamPosition | None = None
    table: BlockTable | None = None
    is_partial: bool = False


class RecoveredIndex(msgspec.Struct):
    """The recovered state of a model.

    headers: of all instances whose header could be read.
    unreadable: instances to be learned again, and why.
    has_other_secret: it was written with another secret, and was not read.
    """

    instances: dict[str, InstanceCheckpoint] = {}
    headers: dict[str, InstanceHeader] = {}
    unreadable: dict[str, str] = {}
    has_other_secret: bool = False


async def _read_fields(
    link: "RedisLink", idx: str, names: Sequence[bytes], extra_commands: "Sequence[Command]"
) -> list[Any]:
    """Returns the values of fields, None for missing ones.

    Raises UnreadableError with reason ``AWAY`` when Redis is unreachable or refuses, or when an
    extra command returns 0.

    idx: the key of the hash.
    extra_commands: commands to run with every read.
    """
    found: list[Any] = []
    for start in range(0, len(names), _PARTS_PER_READ):
        replies = await link.run([("HMGET", idx, *names[start : start + _PARTS_PER_READ]), *extra_commands])
        if replies is None or not isinstance(replies[0], list) or 0 in replies[1:]:
            raise UnreadableError("Redis is away", reason=AWAY)
        found += replies[0]
    return found


async def _read_rows(
    link: "RedisLink", idx: str, instance: str, headers: dict[str, InstanceHeader], extra_commands: "Sequence[Command]"
) -> RowParts:
    """Returns the columns of an instance by name of the part; puts its header in ``headers``.

    Raises UnreadableError as ``_read_fields``, and with reason ``GONE`` if the instance was
    removed. It is read up to three times, since another process may replace parts after their names
    were read.
    """
    for _ in range(_MAX_ATTEMPTS):
        (data,) = await _read_fields(link, idx, [header_field(instance)], extra_commands)
        if data is None:
            raise UnreadableError("it was removed", reason=GONE)
        header = headers[instance] = decode_header(data)
        parts = await _read_fields(link, idx, list(header.parts.values()), extra_commands)
        if None not in parts:
            return {name: decode_part(part) for name, part in zip(header.parts, parts, strict=True)}
    raise UnreadableError("a part is missing", reason="missing")


async def recover_index(
    link: "RedisLink",
    model_key: str,
    wall_offset: float,
    extra_commands: "Sequence[Command]" = (),
    *,
    fingerprint: int | None = None,
) -> RecoveredIndex | None:
    """Returns the recovered state; None when Redis is unreachable.

    It takes a second for an index of some million blocks, in steps of some milliseconds. Each
    instance is read for itself, since the replay after its position proves or refutes it.

    wall_offset: Unix time minus monotonic time.
    extra_commands: commands that renew the lease, which keeps other processes from writing. When
        one returns 0, the lease is lost, and the result is None.
    fingerprint: of the secret of block hashes, for a process that does not lead. Another process
        may write meanwhile, and an instance is read again when a part of it was replaced. An index
        that was written with another secret is not read.
    """
    _, idx, _ = redis_keys.index_keys(model_key)
    replies = await link.run([("HKEYS", idx), ("HGET", idx, STATUSES_FIELD)])
    if replies is None or not isinstance(replies[0], list):
        return None
    found = RecoveredIndex()
    if fingerprint is not None and (mark := _fingerprint(replies[1])) != fingerprint:
        found.has_other_secret = mark is not None
        return found
    for name in filter(None, map(header_instance, replies[0])):
        try:
            rows = await _read_rows(link, idx, name, found.headers, extra_commands)
            header = found.headers[name]
            table = await _restore_table(link, table_steps(header.slice, rows, wall_offset), extra_commands)
            found.instances[name] = InstanceCheckpoint(header.slice, {}, header.position, table)
        except (UnreadableError, SnapshotError) as error:
            if error.reason == AWAY:
                return None
            if error.reason != GONE:
                found.unreadable[name] = error.message
    return found


async def _restore_table(
    link: "RedisLink", steps: Generator[None, None, BlockTable], extra_commands: "Sequence[Command]"
) -> BlockTable:
    """Returns the table that short steps make. Raises SnapshotError, and UnreadableError if the
    lease is lost.
    """
    for number in count(1):
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if not number % _STEPS_PER_TURN:
            await asyncio.sleep(0)
        if extra_commands and not number % _STEPS_PER_RENEWAL:
            replies = await link.run(extra_commands)
            if replies is None or 0 in replies:
                raise UnreadableError("the lease is lost", reason=AWAY)
    raise AssertionError  # pragma: no cover - the loop has no end


def _fingerprint(data: Any) -> int | None:
    """Returns the fingerprint of an index's secret; None if it is missing or damaged."""
    try:
        return decode_value(data, InstanceStatuses).mark if isinstance(data, bytes) else None
    except UnreadableError:
        return None
