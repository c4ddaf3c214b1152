"""Reads the state of a model that an indexer left in Redis, from which the next one continues, and
each gateway that starts.
"""

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Any, Final

import msgspec

from fairlead_kvstore.blockstore.block_table import BlockTable
from fairlead_kvstore.blockstore.snapshot import RowParts, table_steps
from fairlead_kvstore.blockstore.types import InstanceSnapshot
from fairlead_kvstore.errors import SnapshotError, UnreadableError
from fairlead_kvstore.events.types import StreamPosition
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import (
    decode_header,
    decode_part,
    decode_value,
    header_field,
    header_instance,
)
from fairlead_kvstore.index.instance_status import STATUSES_FIELD, InstanceStatuses
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink

_STEPS_PER_TURN: Final = 2
_STEPS_PER_RENEWAL: Final = 16
"""Steps of a restore between two renewals of the lease: some 50 ms of its own."""
_PARTS_PER_READ: Final = 10
"""The parts of one read; each has at most some 100 kB."""
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

    unreadable: instances to be learned again, and why.
    has_other_secret: it was written with another secret, and was not read.
    """

    instances: dict[str, InstanceCheckpoint] = {}
    unreadable: dict[str, str] = {}
    has_other_secret: bool = False


async def read_fields(
    link: RedisLink, idx: str, names: Sequence[bytes], extra_commands: Sequence[Command] = ()
) -> list[Any] | None:
    """Returns the values of fields, None for missing ones; None when Redis is unreachable or
    refuses, or when an extra command returns 0.

    idx: the key of the hash.
    extra_commands: commands to run with every read.
    """
    found: list[Any] = []
    for start in range(0, len(names), _PARTS_PER_READ):
        replies = await link.run([("HMGET", idx, *names[start : start + _PARTS_PER_READ]), *extra_commands])
        if replies is None or not isinstance(replies[0], list) or 0 in replies[1:]:
            return None
        found += replies[0]
    return found


async def recover_index(
    link: RedisLink,
    model_key: str,
    wall_offset: float,
    extra_commands: Sequence[Command] = (),
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
    attempts = 1 if fingerprint is None else _MAX_ATTEMPTS
    for field in replies[0]:
        name = header_instance(field)
        if name is None:
            continue
        for attempt in range(1, attempts + 1):
            try:
                if not await _recover_instance(link, idx, name, found, wall_offset, extra_commands):
                    return None
            except (UnreadableError, SnapshotError) as error:
                if error.reason == "missing" and attempt < attempts:
                    continue
                found.unreadable[name] = error.message
            break
    return found


async def _recover_instance(
    link: RedisLink,
    idx: str,
    instance: str,
    found: RecoveredIndex,
    wall_offset: float,
    extra_commands: Sequence[Command],
) -> bool:
    """Adds an instance, if it is still there. Returns False when Redis is unreachable or the lease
    is lost. Raises UnreadableError and SnapshotError.
    """
    values = await read_fields(link, idx, [header_field(instance)], extra_commands)
    if values is None or values[0] is None:
        return values is not None
    header = decode_header(values[0])
    parts = await read_fields(link, idx, list(header.parts.values()), extra_commands)
    if parts is None:
        return False
    rows = _rows(header.parts, parts)
    table: BlockTable | None = None
    if header.position is not None:
        table = await _restore_table(link, header.slice, rows, wall_offset, extra_commands)
        if table is None:
            return False
    found.instances[instance] = InstanceCheckpoint(header.slice, {}, header.position, table)
    return True


async def _restore_table(
    link: RedisLink,
    snapshot: InstanceSnapshot,
    rows: RowParts,
    wall_offset: float,
    extra_commands: Sequence[Command],
) -> BlockTable | None:
    """Returns the table of a snapshot, made in short steps; None if the lease is lost. Raises
    SnapshotError.
    """
    steps = table_steps(snapshot, rows, wall_offset)
    for number in count(1):
        try:
            next(steps)
        except StopIteration as end:
            table: BlockTable = end.value
            return table
        if not number % _STEPS_PER_TURN:
            await asyncio.sleep(0)
        if extra_commands and not number % _STEPS_PER_RENEWAL:
            replies = await link.run(extra_commands)
            if replies is None or 0 in replies:
                return None
    return None  # pragma: no cover - the loop has no end


def _fingerprint(data: Any) -> int | None:
    """Returns the fingerprint of an index's secret; None if it is missing or damaged."""
    try:
        return decode_value(data, InstanceStatuses).mark if isinstance(data, bytes) else None
    except UnreadableError:
        return None


def _rows(names: dict[str, bytes], parts: list[Any]) -> RowParts:
    """Returns the columns of all parts by name of the part. Raises UnreadableError."""
    if None in parts:
        raise UnreadableError("a part is missing", reason="missing")
    return {name: decode_part(data) for name, data in zip(names, parts, strict=True)}
