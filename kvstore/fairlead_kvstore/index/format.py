"""The index in Redis as bytes, between writers and subscribers. Three keys a model, all in one slot
(``redis_keys.py``).

    own     text ``<epoch>:<holder>``, expires: the writer. Every write compares it first.
    ev      stream of entries ``<epoch>-<sequence>``, field ``d``: changes of up to 20 ms, in order
    idx     one hash with few fields:
              at            text ``<epoch>:<sequence>``: the last written entry
              meta          IndexMeta: its epoch, and whether all snapshots were written in it
              i:<instance>  InstanceHeader: its state, its sequence, and the parts of its rows
              n             InstanceStatuses, about once a second
              c:<number>    one part: columns of up to 4,096 rows with a digest, written once

**A log with snapshots, not a hash of blocks.** A subscriber reads the log and queries Redis once a
batch. A new one reads the parts, some hundred fields, and the log from there. Repeated changes do
no harm, so an instance's snapshot may be newer than the sequence in its header. Each instance has a
separate sequence, because snapshots are written one at a time. A snapshot is written when as many
blocks of the instance have changed as it has. Only parts whose bytes have changed are written.

Values begin with a schema byte, then msgpack. Structs with names may get more fields, arrays more
elements at their end: readers ignore unknown ones. A change that breaks this gets another schema
byte, and readers skip the value. Times in values are Unix seconds. The rows are described in
``blockstore/snapshot.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
import xxhash

from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS
from fairlead_kvstore.blockstore.types import InstanceSnapshot
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.events.types import StreamPosition

INDEX_ENTRY_BYTES: Final = 8 * 1024 * 1024
"""Limit: an entry of the stream of changes; a longer one is damaged."""

SCHEMA: Final = b"\x01"
POSITION_FIELD: Final = b"at"
META_FIELD: Final = b"meta"
STATUSES_FIELD: Final = b"n"
ENTRY_FIELD: Final = b"d"
_INSTANCE: Final = b"i:"
_PART: Final = b"c:"
_DIGEST_BYTES: Final = 8
T = TypeVar("T")

_Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]

_ENCODER: Final = msgspec.msgpack.Encoder()


class IndexMeta(msgspec.Struct, frozen=True):
    """The epoch of an index. ``ready`` means that every snapshot was written in it."""

    epoch: int
    holder: str
    wall: float
    ready: bool


class InstanceStatus(msgspec.Struct, frozen=True):
    """The status of one instance as its indexer reads it. None means unknown.

    events, replay: the ZMQ addresses of its KV events and of its replay endpoint.
    trouble: why it is not read; empty when it is.
    following: the number of the next batch.
    lag_seconds: age of the last batch when it was read, by the engine's and the indexer's clocks.
    """

    url: str
    block_size: int | None = None
    events: str | None = None
    replay: str | None = None
    connected: bool = False
    replaying: bool = False
    trouble: str = ""
    blocks: int = 0
    orphans: int = 0
    following: int | None = None
    lag_seconds: float | None = None
    evicted_age_seconds: float | None = None


class InstanceStatuses(msgspec.Struct, frozen=True):
    """The statuses of all instances of a model as of ``wall`` (Unix seconds).

    Why: a header is written with its blocks, perhaps minutes apart. Statuses are in a field of
    their own, about once a second; without the block size no prompt can be looked up.

    mark: the fingerprint of the installation's secret.
    """

    epoch: int
    wall: float
    mark: int
    instances: Mapping[str, InstanceStatus]


def secret_fingerprint(secret: bytes) -> int:
    """Returns a number that identifies an installation's secret and reveals no more of it than a
    block hash.

    Hashes under another secret match nothing, silently. A reader of blocks compares the
    fingerprints first.
    """
    return xxhash.xxh3_64_intdigest(secret + b"\0the secret of this index\0")


class InstanceHeader(msgspec.Struct):
    """The header of one instance; its snapshot contains all entries up to ``sequence``.

    parts: name of the part → its field.
    """

    epoch: int
    sequence: int
    slice: InstanceSnapshot
    parts: dict[str, bytes]
    position: StreamPosition | None = None


class _Stored(msgspec.Struct, tag="s", array_like=True, gc=False):
    instance: _Number
    tier: _Number
    reserved: int  # 0, in place of a field of earlier releases that none of them reads
    hashes: list[int]


class _Removed(msgspec.Struct, tag="r", array_like=True, gc=False):
    instance: _Number
    tier: _Number
    hashes: list[int]


class _Cleared(msgspec.Struct, tag="c", array_like=True, gc=False):
    instance: _Number
    epoch: int
    reason: str


class _Detached(msgspec.Struct, tag="g", array_like=True, gc=False):
    instance: _Number


class _Marked(msgspec.Struct, tag="m", array_like=True, gc=False):
    instance: _Number
    complete: bool
    reason: str
    since: float


class _Hinted(msgspec.Struct, tag="h", array_like=True, gc=False):
    """Blocks in a shared store, from a release in which this was no place. They are left out."""


class _Expired(msgspec.Struct, tag="x", array_like=True, gc=False):
    """The same for blocks that expired."""


_WireChange = _Stored | _Removed | _Cleared | _Detached | _Marked | _Hinted | _Expired


class _Entry(msgspec.Struct, array_like=True, gc=False):
    """One entry, written at ``wall`` (Unix seconds). Its changes refer to instances by their index
    in ``instances``.
    """

    wall: float
    instances: list[str]
    changes: list[_WireChange]


_ENTRY: Final = msgspec.msgpack.Decoder(_Entry)


def encode_value(value: IndexMeta | InstanceHeader | InstanceStatuses) -> bytes:
    """Returns a value as bytes: the schema byte, then msgpack."""
    return SCHEMA + _ENCODER.encode(value)


def decode_value(data: bytes, kind: type[T]) -> T:
    """Returns the value of type ``kind`` in ``data``. Raises UnreadableError."""
    _check_schema(data)
    try:
        return msgspec.msgpack.decode(memoryview(data)[1:], type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UnreadableError(f"the bytes are not a valid {kind.__name__}", reason="shape") from None


def decode_header(data: bytes) -> InstanceHeader:
    """Returns the header in ``data``. Raises UnreadableError, also if two parts have one field.

    Why: a small header could otherwise name one large field a million times, and each is read.
    """
    header = decode_value(data, InstanceHeader)
    if len(set(header.parts.values())) < len(header.parts):
        raise UnreadableError("two parts have the same field", reason="shape")
    return header


def encode_entry(offered: Sequence[Change], wall: float, wall_offset: float) -> bytes:
    """Returns the bytes of one entry of the stream.

    wall: when it is written, in Unix seconds.
    wall_offset: Unix time minus monotonic time of this process.
    """
    numbers: dict[str, int] = {}
    wired = [_encode_change(change, numbers, wall_offset) for change in offered]
    return SCHEMA + _ENCODER.encode(_Entry(wall, list(numbers), wired))


def _encode_change(change: Change, numbers: dict[str, int], wall_offset: float) -> _WireChange:
    """Returns a change as it is written. ``numbers`` gets the number of its instance."""
    number = numbers.setdefault(change.instance, len(numbers))
    if isinstance(change, changes.BlocksStored):
        return _Stored(number, change.tier, 0, change.hashes)
    if isinstance(change, changes.BlocksRemoved):
        return _Removed(number, change.tier, change.hashes)
    if isinstance(change, changes.CompletenessChanged):
        return _Marked(number, change.complete, change.reason, change.since + wall_offset)
    if isinstance(change, changes.InstanceCleared):
        return _Cleared(number, change.epoch, change.reason)
    return _Detached(number)


def decode_entry_with_time(data: bytes, wall_offset: float) -> tuple[float, list[Change]]:
    """Returns when an entry was written (Unix seconds), and its changes. Raises UnreadableError."""
    if len(data) > INDEX_ENTRY_BYTES:
        raise UnreadableError(f"an entry of {len(data)} bytes is too large", reason="bytes")
    _check_schema(data)
    try:
        entry = _ENTRY.decode(memoryview(data)[1:])
        wired = [change for change in entry.changes if not isinstance(change, _Hinted | _Expired)]
        return entry.wall, [_decode_change(change, entry.instances, wall_offset) for change in wired]
    except (msgspec.MsgspecError, ValueError, RecursionError, IndexError):
        raise UnreadableError("the bytes are not a valid entry of changes", reason="shape") from None


def _decode_change(
    change: _Stored | _Removed | _Cleared | _Detached | _Marked, names: list[str], wall_offset: float
) -> Change:
    name = names[change.instance]
    if isinstance(change, _Stored):
        return changes.BlocksStored(name, INSTANCE_TIERS[change.tier], change.hashes)
    if isinstance(change, _Removed):
        return changes.BlocksRemoved(name, INSTANCE_TIERS[change.tier], change.hashes)
    if isinstance(change, _Marked):
        return changes.CompletenessChanged(name, change.complete, change.reason, change.since - wall_offset)
    if isinstance(change, _Cleared):
        return changes.InstanceCleared(name, change.epoch, change.reason)
    return changes.InstanceDetached(name)


def encode_part(data: bytes, digest: int) -> bytes:
    """Returns the bytes of a part: schema byte, ``digest``, and the columns in ``data``.

    digest: XXH3-64 of ``data``.
    """
    return SCHEMA + digest.to_bytes(_DIGEST_BYTES, "little") + data


def decode_part(data: bytes) -> bytes:
    """Returns the columns in the bytes of a part. Raises UnreadableError."""
    _check_schema(data)
    found = data[1 + _DIGEST_BYTES :]
    if xxhash.xxh3_64_intdigest(found) != int.from_bytes(data[1 : 1 + _DIGEST_BYTES], "little"):
        raise UnreadableError("a part does not match its digest", reason="shape")
    return found


def header_field(instance: str) -> bytes:
    return _INSTANCE + instance.encode("utf-8", "surrogatepass")


def header_instance(field: bytes) -> str | None:
    """Returns the instance of a header field; None for other fields, also for a name that is no
    text.
    """
    if not field.startswith(_INSTANCE):
        return None
    try:
        return field[len(_INSTANCE) :].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None


def part_field(epoch: int, number: int) -> bytes:
    return b"%s%x.%x" % (_PART, epoch, number)


def is_part(field: bytes) -> bool:
    return field.startswith(_PART)


def encode_position(epoch: int, sequence: int) -> bytes:
    return b"%d:%d" % (epoch, sequence)


def decode_position(data: Any) -> tuple[int, int] | None:
    """Returns epoch and sequence in the value of ``at``; None when it is missing or damaged."""
    if not isinstance(data, bytes):
        return None
    epoch, colon, sequence = data.partition(b":")
    if not colon or not epoch.isdigit() or not sequence.isdigit() or len(data) > 40:
        return None
    return int(epoch), int(sequence)


def _check_schema(data: bytes) -> None:
    if data[:1] != SCHEMA:
        schema = data[0] if data else "none"
        raise UnreadableError(f"the value has schema {schema}, which this release cannot read", reason="schema")
