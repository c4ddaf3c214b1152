"""What an indexer left in Redis of a model, for the next one to go on from."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from fairlead_kvstore.blockstore.snapshot import RowParts
from fairlead_kvstore.blockstore.types import InstanceSnapshot
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.events.types import StreamPosition
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import (
    HINTS_FIELD,
    HintsHeader,
    InstanceHeader,
    decode_hints,
    decode_part,
    decode_value,
    header_instance,
)
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink

_PARTS_PER_READ: Final = 10
"""Of at most some 100 kB each."""


class InstanceCheckpoint(msgspec.Struct):
    """One instance as the next indexer needs it: its slice, the rows, and where its stream was."""

    slice: InstanceSnapshot
    rows: RowParts
    position: StreamPosition | None = None


class RecoveredIndex(msgspec.Struct):
    """``hints`` are in this process's time and have not run out; ``unreadable`` instances are to be learned anew, with why."""

    instances: dict[str, InstanceCheckpoint]
    hints: list[tuple[int, float]]
    unreadable: dict[str, str]


async def read_fields(
    link: RedisLink, idx: str, names: Sequence[bytes], extra_commands: Sequence[Command] = ()
) -> list[Any] | None:
    """The values of fields of the index, None for those that are not there; None when Redis is away or refuses.

    ``also`` is run with every few of them.
    """
    found: list[Any] = []
    for start in range(0, len(names), _PARTS_PER_READ):
        replies = await link.run([("HMGET", idx, *names[start : start + _PARTS_PER_READ]), *extra_commands])
        if replies is None or not isinstance(replies[0], list):
            return None
        found += replies[0]
    return found


async def recover_index(
    link: RedisLink, model_key: str, wall_offset: float, now: float, extra_commands: Sequence[Command] = ()
) -> RecoveredIndex | None:
    """All that is there; None when Redis is away. ``ahead``: Unix time less monotonic time. Nobody else may write meanwhile,
    for which ``also`` renews a lease."""
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
            header: Any = decode_value(values[0], HintsHeader if instance is None else InstanceHeader)
            parts = await read_fields(link, idx, list(header.parts.values()), extra_commands)
            if parts is None:
                return None
            rows = _rows(header.parts, parts)
            if instance is None:
                hints = [hint for data in rows.values() for hint in decode_hints(data, wall_offset)]
                found.hints = sorted((hint for hint in hints if hint[1] > now), key=lambda hint: hint[1])
            else:
                found.instances[instance] = InstanceCheckpoint(header.slice, rows, header.position)
        except UnreadableError as error:
            found.unreadable[name] = error.message
    return found


def _rows(names: dict[str, bytes], parts: list[Any]) -> RowParts:
    """The columns of all parts. Raises UnreadableError."""
    if None in parts:
        raise UnreadableError("a part is missing", reason="missing")
    return {name: decode_part(data) for name, data in zip(names, parts, strict=True)}
