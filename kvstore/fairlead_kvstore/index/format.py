"""The index in Redis, as bytes: what a writer writes and a feed reads. Three keys a model, all in one slot (``keys.py``).

    own     text ``<epoch>:<holder>``, expires by itself: who may write. Every write is a script that compares it first.
    ev      stream of entries ``<epoch>-<sequence>``, field ``d``: the changes of up to 20 ms, in order, none missing.
    idx     one hash with few fields:
              at            text ``<epoch>:<sequence>``: the last entry that was written
              meta          Meta: whose epoch it is, and whether everything was written down in it
              i:<instance>  Header: what is known of an instance, up to which sequence, and which parts its rows are in
              n             Notes: what the indexer says of its instances, about once a second, see ``notes.py``
              s             HintsHeader: the same of the hints of stores that all instances share
              c:<number>    one part: columns of up to 4,096 rows, see ``truth/kept.py``; written once, never changed, with a digest

**A log with snapshots, not a hash of blocks.** Whoever follows reads the log and touches Redis once a batch; whoever comes anew
reads the parts, some hundred fields, and the log from where they are. Applying a change again does no harm, so an instance's
snapshot may be newer than the sequence that its header tells, and each instance has a sequence of its own: they are written one
at a time, an instance when it has changed as much as it holds, and only the parts whose bytes have changed.

Values begin with a schema byte, then msgpack. Structs with names may get more fields, arrays more at their end: readers leave
out what they do not know. What this cannot bear gets another schema byte, and is not read. Times in values are Unix seconds.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec
import xxhash

from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS
from fairlead_kvstore.blockstore.types import InstanceSnapshot
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.events.types import StreamPosition
from fairlead_kvstore.index.instance_status import InstanceStatuses

SCHEMA: Final = b"\x01"
POSITION_FIELD: Final = b"at"
META_FIELD: Final = b"meta"
HINTS_FIELD: Final = b"s"
ENTRY_FIELD: Final = b"d"
_INSTANCE: Final = b"i:"
_PART: Final = b"c:"
_HINT_BYTES: Final = 16
_DIGEST_BYTES: Final = 8
HINTS_PER_PART: Final = 4_096
T = TypeVar("T")


class IndexMeta(msgspec.Struct, frozen=True):
    """``ready``: every instance was written down in this epoch."""

    epoch: int
    holder: str
    wall: float
    ready: bool


class InstanceHeader(msgspec.Struct):
    """One instance. ``parts``: name of the part → its field. What ``sequence`` or an earlier entry says is in them already."""

    epoch: int
    sequence: int
    slice: InstanceSnapshot
    parts: dict[str, bytes]
    position: StreamPosition | None = None


class HintsHeader(msgspec.Struct):
    """The hints of the model; ``parts`` hold own hashes (8 bytes each), then Unix seconds (8 bytes each) until which they hold."""

    epoch: int
    sequence: int
    parts: dict[str, bytes]


class _Stored(msgspec.Struct, tag="s", array_like=True, gc=False):
    instance: int
    tier: int
    parent: int
    hashes: list[int]


class _Removed(msgspec.Struct, tag="r", array_like=True, gc=False):
    instance: int
    tier: int
    hashes: list[int]


class _Cleared(msgspec.Struct, tag="c", array_like=True, gc=False):
    instance: int
    epoch: int
    reason: str


class _Gone(msgspec.Struct, tag="g", array_like=True, gc=False):
    instance: int


class _Marked(msgspec.Struct, tag="m", array_like=True, gc=False):
    instance: int
    complete: bool
    reason: str
    since: float


class _Hinted(msgspec.Struct, tag="h", array_like=True, gc=False):
    hashes: list[int]
    until: float


class _Expired(msgspec.Struct, tag="x", array_like=True, gc=False):
    hashes: list[int]


_WireChange = _Stored | _Removed | _Cleared | _Gone | _Marked | _Hinted | _Expired


class _Entry(msgspec.Struct, array_like=True, gc=False):
    """``wall`` is when it was written; the changes name instances by their place in ``instances``."""

    wall: float
    instances: list[str]
    changes: list[_WireChange]


_ENCODER: Final = msgspec.msgpack.Encoder()
_ENTRY: Final = msgspec.msgpack.Decoder(_Entry)


def encode_value(value: IndexMeta | InstanceHeader | HintsHeader | InstanceStatuses) -> bytes:
    """The bytes of one value."""
    return SCHEMA + _ENCODER.encode(value)


def decode_value(data: bytes, kind: type[T]) -> T:
    """The value. Raises UnreadableError."""
    _check_schema(data)
    try:
        return msgspec.msgpack.decode(memoryview(data)[1:], type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UnreadableError(f"these bytes are no {kind.__name__}", reason="shape") from None


def encode_entry(told: Sequence[Change], wall: float, wall_offset: float) -> bytes:
    """One entry of the stream, written at ``wall``; ``ahead``: Unix time less monotonic time of this process."""
    places: dict[str, int] = {}
    wired: list[_WireChange] = []
    for one in told:
        if isinstance(one, changes.HintsAdded):
            wired.append(_Hinted(one.hashes, one.until + wall_offset))
            continue
        if isinstance(one, changes.HintsExpired):
            wired.append(_Expired(one.hashes))
            continue
        place = places.setdefault(one.instance, len(places))
        if isinstance(one, changes.BlocksStored):
            wired.append(_Stored(place, one.tier, one.parent, one.hashes))
        elif isinstance(one, changes.BlocksRemoved):
            wired.append(_Removed(place, one.tier, one.hashes))
        elif isinstance(one, changes.CompletenessChanged):
            wired.append(_Marked(place, one.complete, one.reason, one.since + wall_offset))
        elif isinstance(one, changes.InstanceCleared):
            wired.append(_Cleared(place, one.epoch, one.reason))
        else:
            wired.append(_Gone(place))
    return SCHEMA + _ENCODER.encode(_Entry(wall, list(places), wired))


def decode_entry(data: bytes, model_key: str, wall_offset: float) -> list[Change]:
    """The changes of one entry, in this process's time. Raises UnreadableError."""
    return decode_entry_with_time(data, model_key, wall_offset)[1]


def decode_entry_with_time(data: bytes, model_key: str, wall_offset: float) -> tuple[float, list[Change]]:
    """The same, and when the entry was written, Unix seconds. Raises UnreadableError."""
    _check_schema(data)
    try:
        entry = _ENTRY.decode(memoryview(data)[1:])
        return entry.wall, [_decode_change(one, entry.instances, model_key, wall_offset) for one in entry.changes]
    except (msgspec.MsgspecError, ValueError, RecursionError, IndexError):
        raise UnreadableError("these bytes are no entry of changes", reason="shape") from None


def _decode_change(one: _WireChange, names: list[str], model_key: str, ahead: float) -> Change:
    if isinstance(one, _Hinted):
        return changes.HintsAdded(model_key, one.hashes, one.until - ahead)
    if isinstance(one, _Expired):
        return changes.HintsExpired(model_key, one.hashes)
    if one.instance < 0:
        raise IndexError
    name = names[one.instance]
    if isinstance(one, _Stored):
        return changes.BlocksStored(name, INSTANCE_TIERS[_checked_tier(one.tier)], one.parent, one.hashes)
    if isinstance(one, _Removed):
        return changes.BlocksRemoved(name, INSTANCE_TIERS[_checked_tier(one.tier)], one.hashes)
    if isinstance(one, _Marked):
        return changes.CompletenessChanged(name, one.complete, one.reason, one.since - ahead)
    if isinstance(one, _Cleared):
        return changes.InstanceCleared(name, one.epoch, one.reason)
    return changes.InstanceDetached(name)


def _checked_tier(value: int) -> int:
    if value < 0:
        raise IndexError
    return value


def encode_hints(hints: Iterable[tuple[int, float]], wall_offset: float) -> dict[str, bytes]:
    """Parts of hints by name. A part holds what runs out within one minute, so that it stays as it is while time goes on."""
    minutes: dict[int, list[tuple[int, float]]] = {}
    for own, until in hints:
        minutes.setdefault(int((until + wall_offset) // 60.0), []).append((own, until + wall_offset))
    found = {}
    for minute, rows in minutes.items():
        for number, start in enumerate(range(0, len(rows), HINTS_PER_PART)):
            some = rows[start : start + HINTS_PER_PART]
            owns, times = array("Q", [own for own, _ in some]), array("d", [until for _, until in some])
            found[f"{minute}.{number}"] = _little_endian(owns) + _little_endian(times)
    return found


def decode_hints(data: bytes, wall_offset: float) -> list[tuple[int, float]]:
    """The hints of one part, in this process's time. Raises UnreadableError."""
    count, rest = divmod(len(data), _HINT_BYTES)
    if rest or count > HINTS_PER_PART:
        raise UnreadableError(f"{len(data)} bytes are no part of hints", reason="shape")
    owns, times = array("Q"), array("d")
    owns.frombytes(data[: 8 * count])
    times.frombytes(data[8 * count :])
    if _little_endian(array("Q", [1])) != array("Q", [1]).tobytes():
        owns.byteswap()
        times.byteswap()
    return [(own, until - wall_offset) for own, until in zip(owns, times, strict=True)]


def encode_part(data: bytes, digest: int) -> bytes:
    """A part as it is written: schema, XXH3 of the columns, columns."""
    return SCHEMA + digest.to_bytes(_DIGEST_BYTES, "little") + data


def decode_part(data: bytes) -> bytes:
    """The columns. Raises UnreadableError."""
    _check_schema(data)
    found = data[1 + _DIGEST_BYTES :]
    if xxhash.xxh3_64_intdigest(found) != int.from_bytes(data[1 : 1 + _DIGEST_BYTES], "little"):
        raise UnreadableError("a part is not what was written", reason="shape")
    return found


def header_field(instance: str) -> bytes:
    """The field of an instance's header."""
    return _INSTANCE + instance.encode("utf-8", "surrogatepass")


def header_instance(field: bytes) -> str | None:
    """The instance that a field is the header of; None for other fields."""
    return field[len(_INSTANCE) :].decode("utf-8", "surrogatepass") if field.startswith(_INSTANCE) else None


def part_field(epoch: int, number: int) -> bytes:
    """A field for a part, never used before."""
    return b"%s%x.%x" % (_PART, epoch, number)


def is_part(field: bytes) -> bool:
    """Whether a field is one of a part."""
    return field.startswith(_PART)


def encode_position(epoch: int, sequence: int) -> bytes:
    """The value of ``at``."""
    return b"%d:%d" % (epoch, sequence)


def decode_position(data: Any) -> tuple[int, int] | None:
    """Epoch and sequence; None when there is none, or it is damaged."""
    if not isinstance(data, bytes):
        return None
    epoch, colon, sequence = data.partition(b":")
    if not colon or not epoch.isdigit() or not sequence.isdigit() or len(data) > 40:
        return None
    return int(epoch), int(sequence)


def _check_schema(data: bytes) -> None:
    if data[:1] != SCHEMA:
        said = data[0] if data else "none"
        raise UnreadableError(f"it has the schema {said}, which this release does not read", reason="schema")


def _little_endian(column: "array[Any]") -> bytes:
    swapped = array(column.typecode, column)
    if array("H", [1]).tobytes() != b"\x01\x00":
        swapped.byteswap()
    return swapped.tobytes()
