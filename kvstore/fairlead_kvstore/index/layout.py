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

from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.events.outcomes import Position
from fairlead_kvstore.index.notes import Notes
from fairlead_kvstore.truth import changes
from fairlead_kvstore.truth.changes import Change
from fairlead_kvstore.truth.kept import KeptSlice
from fairlead_kvstore.truth.tiers import EXACT

SCHEMA: Final = b"\x01"
AT: Final = b"at"
META: Final = b"meta"
HINTS: Final = b"s"
DATA: Final = b"d"
_INSTANCE: Final = b"i:"
_PART: Final = b"c:"
_HINT_ROW: Final = 16
_DIGEST: Final = 8
HINT_ROWS: Final = 4_096
T = TypeVar("T")


class Meta(msgspec.Struct, frozen=True):
    """``ready``: every instance was written down in this epoch."""

    epoch: int
    holder: str
    wall: float
    ready: bool


class Header(msgspec.Struct):
    """One instance. ``parts``: name of the part → its field. What ``sequence`` or an earlier entry says is in them already."""

    epoch: int
    sequence: int
    slice: KeptSlice
    parts: dict[str, bytes]
    position: Position | None = None


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


_Wired = _Stored | _Removed | _Cleared | _Gone | _Marked | _Hinted | _Expired


class _Entry(msgspec.Struct, array_like=True, gc=False):
    """``wall`` is when it was written; the changes name instances by their place in ``instances``."""

    wall: float
    instances: list[str]
    changes: list[_Wired]


_ENCODER: Final = msgspec.msgpack.Encoder()
_ENTRY: Final = msgspec.msgpack.Decoder(_Entry)


def encode(value: Meta | Header | HintsHeader | Notes) -> bytes:
    """The bytes of one value."""
    return SCHEMA + _ENCODER.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """The value. Raises UnreadableError."""
    _schema(data)
    try:
        return msgspec.msgpack.decode(memoryview(data)[1:], type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UnreadableError(f"these bytes are no {kind.__name__}", reason="shape") from None


def encode_entry(told: Sequence[Change], wall: float, ahead: float) -> bytes:
    """One entry of the stream, written at ``wall``; ``ahead``: Unix time less monotonic time of this process."""
    places: dict[str, int] = {}
    wired: list[_Wired] = []
    for one in told:
        if isinstance(one, changes.Hinted):
            wired.append(_Hinted(one.hashes, one.until + ahead))
            continue
        if isinstance(one, changes.Expired):
            wired.append(_Expired(one.hashes))
            continue
        place = places.setdefault(one.instance, len(places))
        if isinstance(one, changes.Stored):
            wired.append(_Stored(place, one.tier, one.parent, one.hashes))
        elif isinstance(one, changes.Removed):
            wired.append(_Removed(place, one.tier, one.hashes))
        elif isinstance(one, changes.Marked):
            wired.append(_Marked(place, one.complete, one.reason, one.since + ahead))
        elif isinstance(one, changes.Cleared):
            wired.append(_Cleared(place, one.epoch, one.reason))
        else:
            wired.append(_Gone(place))
    return SCHEMA + _ENCODER.encode(_Entry(wall, list(places), wired))


def decode_entry(data: bytes, model_key: str, ahead: float) -> list[Change]:
    """The changes of one entry, in this process's time. Raises UnreadableError."""
    return changes_at(data, model_key, ahead)[1]


def changes_at(data: bytes, model_key: str, ahead: float) -> tuple[float, list[Change]]:
    """The same, and when the entry was written, Unix seconds. Raises UnreadableError."""
    _schema(data)
    try:
        entry = _ENTRY.decode(memoryview(data)[1:])
        return entry.wall, [_change(one, entry.instances, model_key, ahead) for one in entry.changes]
    except (msgspec.MsgspecError, ValueError, RecursionError, IndexError):
        raise UnreadableError("these bytes are no entry of changes", reason="shape") from None


def _change(one: _Wired, names: list[str], model_key: str, ahead: float) -> Change:
    if isinstance(one, _Hinted):
        return changes.Hinted(model_key, one.hashes, one.until - ahead)
    if isinstance(one, _Expired):
        return changes.Expired(model_key, one.hashes)
    if one.instance < 0:
        raise IndexError
    name = names[one.instance]
    if isinstance(one, _Stored):
        return changes.Stored(name, EXACT[_tier(one.tier)], one.parent, one.hashes)
    if isinstance(one, _Removed):
        return changes.Removed(name, EXACT[_tier(one.tier)], one.hashes)
    if isinstance(one, _Marked):
        return changes.Marked(name, one.complete, one.reason, one.since - ahead)
    if isinstance(one, _Cleared):
        return changes.Cleared(name, one.epoch, one.reason)
    return changes.Gone(name)


def _tier(value: int) -> int:
    if value < 0:
        raise IndexError
    return value


def encode_hints(hints: Iterable[tuple[int, float]], ahead: float) -> dict[str, bytes]:
    """Parts of hints by name. A part holds what runs out within one minute, so that it stays as it is while time goes on."""
    minutes: dict[int, list[tuple[int, float]]] = {}
    for own, until in hints:
        minutes.setdefault(int((until + ahead) // 60.0), []).append((own, until + ahead))
    found = {}
    for minute, rows in minutes.items():
        for number, start in enumerate(range(0, len(rows), HINT_ROWS)):
            some = rows[start : start + HINT_ROWS]
            owns, times = array("Q", [own for own, _ in some]), array("d", [until for _, until in some])
            found[f"{minute}.{number}"] = _little(owns) + _little(times)
    return found


def decode_hints(data: bytes, ahead: float) -> list[tuple[int, float]]:
    """The hints of one part, in this process's time. Raises UnreadableError."""
    count, rest = divmod(len(data), _HINT_ROW)
    if rest or count > HINT_ROWS:
        raise UnreadableError(f"{len(data)} bytes are no part of hints", reason="shape")
    owns, times = array("Q"), array("d")
    owns.frombytes(data[: 8 * count])
    times.frombytes(data[8 * count :])
    if _little(array("Q", [1])) != array("Q", [1]).tobytes():
        owns.byteswap()
        times.byteswap()
    return [(own, until - ahead) for own, until in zip(owns, times, strict=True)]


def encode_part(data: bytes, digest: int) -> bytes:
    """A part as it is written: schema, XXH3 of the columns, columns."""
    return SCHEMA + digest.to_bytes(_DIGEST, "little") + data


def decode_part(data: bytes) -> bytes:
    """The columns. Raises UnreadableError."""
    _schema(data)
    found = data[1 + _DIGEST :]
    if xxhash.xxh3_64_intdigest(found) != int.from_bytes(data[1 : 1 + _DIGEST], "little"):
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


def at_text(epoch: int, sequence: int) -> bytes:
    """The value of ``at``."""
    return b"%d:%d" % (epoch, sequence)


def parse_at(data: Any) -> tuple[int, int] | None:
    """Epoch and sequence; None when there is none, or it is damaged."""
    if not isinstance(data, bytes):
        return None
    epoch, colon, sequence = data.partition(b":")
    if not colon or not epoch.isdigit() or not sequence.isdigit() or len(data) > 40:
        return None
    return int(epoch), int(sequence)


def _schema(data: bytes) -> None:
    if data[:1] != SCHEMA:
        said = data[0] if data else "none"
        raise UnreadableError(f"it has the schema {said}, which this release does not read", reason="schema")


def _little(column: "array[Any]") -> bytes:
    swapped = array(column.typecode, column)
    if array("H", [1]).tobytes() != b"\x01\x00":
        swapped.byteswap()
    return swapped.tobytes()
