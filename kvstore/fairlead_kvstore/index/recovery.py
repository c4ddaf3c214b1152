"""Reads the state of a model that an indexer left in Redis, from which the next one continues."""

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Any, Final

import msgspec

from fairlead_kvstore.blockstore.block_table import BlockTable
from fairlead_kvstore.blockstore.snapshot import RowParts, tables_steps
from fairlead_kvstore.blockstore.types import InstanceSnapshot
from fairlead_kvstore.errors import SnapshotError, UnreadableError
from fairlead_kvstore.events.types import StreamPosition
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import (
    HINTS_FIELD,
    HintsHeader,
    InstanceHeader,
    decode_header,
    decode_hints,
    decode_part,
    header_instance,
)
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink

_STEPS_PER_TURN: Final = 2
_STEPS_PER_RENEWAL: Final = 16
"""Steps of a restore between two renewals of the lease: some 50 ms of its own."""
_PARTS_PER_READ: Final = 10
"""The parts of one read; each has at most some 100 kB."""


class InstanceCheckpoint(msgspec.Struct):
    """The state of one instance for the next indexer: its snapshot, rows and stream position.

    tables: those that were restored, in place of the rows.
    is_partial: a part of a batch is applied. Then it has no position, since the next indexer can
    neither repeat the part nor leave it out.
    """

    slice: InstanceSnapshot
    rows: RowParts
    position: StreamPosition | None = None
    tables: list[BlockTable] = []
    is_partial: bool = False


class RecoveredIndex(msgspec.Struct):
    """The recovered state of a model.

    hints: block hash and expiry (monotonic seconds) of those that have not expired.
    unreadable: instances to be learned again, and why.
    """

    instances: dict[str, InstanceCheckpoint]
    hints: list[tuple[int, float]]
    unreadable: dict[str, str]


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
    link: RedisLink, model_key: str, wall_offset: float, now: float, extra_commands: Sequence[Command] = ()
) -> RecoveredIndex | None:
    """Returns the recovered state; None when Redis is unreachable. No other process may write the
    index meanwhile.

    It takes seconds for an index of a million blocks, in steps of some milliseconds.

    wall_offset: Unix time minus monotonic time.
    extra_commands: commands that renew the lease, which keeps other processes from writing. When
        one returns 0, the lease is lost, and the result is None.
    """
    _, idx, _ = redis_keys.index_keys(model_key)
    replies = await link.run([("HKEYS", idx)])
    if replies is None or not isinstance(replies[0], list):
        return None
    found = RecoveredIndex({}, [], {})
    for field in replies[0]:
        instance = header_instance(field)
        name = "hints" if field == HINTS_FIELD else instance
        values = None if name is None else await read_fields(link, idx, [field], extra_commands)
        if name is None or (values is not None and values[0] is None):
            continue
        if values is None:
            return None
        try:
            header: Any = decode_header(values[0], HintsHeader if instance is None else InstanceHeader)
            parts = await read_fields(link, idx, list(header.parts.values()), extra_commands)
            if parts is None:
                return None
            rows = _rows(header.parts, parts)
            if instance is None:
                hints = [hint for data in rows.values() for hint in decode_hints(data, wall_offset)]
                found.hints = sorted((hint for hint in hints if hint[1] > now), key=lambda hint: hint[1])
            else:
                tables: list[BlockTable] | None = []
                if header.position is not None:
                    tables = await _restore_tables(link, header.slice, rows, wall_offset, extra_commands)
                if tables is None:
                    return None
                found.instances[instance] = InstanceCheckpoint(header.slice, {}, header.position, tables)
        except (UnreadableError, SnapshotError) as error:
            found.unreadable[name] = error.message
    return found


async def _restore_tables(
    link: RedisLink,
    snapshot: InstanceSnapshot,
    rows: RowParts,
    wall_offset: float,
    extra_commands: Sequence[Command],
) -> list[BlockTable] | None:
    """Returns the tables of a snapshot, made in short steps; None if the lease is lost. Raises
    SnapshotError.
    """
    steps = tables_steps(snapshot, rows, wall_offset)
    for number in count(1):
        try:
            next(steps)
        except StopIteration as end:
            tables: list[BlockTable] = end.value
            return tables
        if not number % _STEPS_PER_TURN:
            await asyncio.sleep(0)
        if extra_commands and not number % _STEPS_PER_RENEWAL:
            replies = await link.run(extra_commands)
            if replies is None or 0 in replies:
                return None
    return None  # pragma: no cover - the loop has no end


def _rows(names: dict[str, bytes], parts: list[Any]) -> RowParts:
    """Returns the columns of all parts by name of the part. Raises UnreadableError."""
    if None in parts:
        raise UnreadableError("a part is missing", reason="missing")
    return {name: decode_part(data) for name, data in zip(names, parts, strict=True)}
