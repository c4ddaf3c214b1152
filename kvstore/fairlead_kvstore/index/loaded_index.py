"""A model's index as it is in Redis at one moment, for `fairlead index` and for tests.

It is loaded from the snapshot of every instance, then from all changes in the stream. All changes
are needed, not only those since the oldest snapshot. A new instance is only in the stream until its
first snapshot, and the stream is never cut before that. A change that is in a snapshot already is
applied again, in order, which does no harm. The writer continues during the load and may replace an
instance's parts after their names were read. The instance is then read again. Values that cannot be
read are left out, and the instance is marked incomplete.

Every lookup is exact and walks along the chain: engines may lose a block in the middle. A slower
tier continues where the faster one ends, as when an engine serves a prompt: depths are cumulative.
Blocks in a shared store come last, and only after blocks of an instance or from the start.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from redis.exceptions import ResponseError

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.block_table import MAX_COPIES, TIER_SHIFT, time_of
from fairlead_kvstore.blockstore.changes import (
    BlocksRemoved,
    BlocksStored,
    Change,
    CompletenessChanged,
    InstanceCleared,
    InstanceDetached,
)
from fairlead_kvstore.blockstore.snapshot import decode_replica_part, decode_ticks
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier, is_shared_store
from fairlead_kvstore.errors import SnapshotError, UnreadableError
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import (
    ENTRY_FIELD,
    META_FIELD,
    POSITION_FIELD,
    IndexMeta,
    InstanceHeader,
    decode_entry_with_time,
    decode_position,
    decode_value,
    header_instance,
)
from fairlead_kvstore.index.recovery import AWAY, GONE, read_instance
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink

INDEX_ENTRY_BYTES: Final = 8 * 1024 * 1024
"""Limit: an entry of that stream; a longer one is damaged."""

ENTRIES_PER_READ: Final = 256
_REDIS_AWAY: Final = "Redis is away"
_LIMITS: Final = Limits()
_TIER_BITS: Final = len(INSTANCE_TIERS)
_MAX_WALL: Final = 1e11
"""Seconds from which on a time is no time; it may be infinite in a damaged value."""
_UP_TO_TIER: Final = (1, 3, 7)
"""The bits of a tier and of all faster ones."""


MatchedBlocks: TypeAlias = tuple[int, int, int, int]
"""Cached blocks from a chain's start: in the GPU, up to CPU, up to disk, with a shared store."""


class KnownCompleteness(NamedTuple):
    """The completeness of an instance: complete or not, and if not, why and since when (monotonic
    seconds).
    """

    complete: bool
    reason: str
    since: float


class BlockCounts(msgspec.Struct):
    """Distinct blocks of one instance: by tier, in any tier, and those that no other instance has
    in any tier.
    """

    gpu: int = 0
    cpu: int = 0
    disk: int = 0
    blocks: int = 0
    unique: int = 0


class LoadedIndex:
    """The blocks of a model's instances, as of ``epoch`` and ``sequence``.

    Blocks beyond ``max_blocks`` and more instances than a fleet may have are left out.

    unreadable: instances whose blocks could not be read, and why.
    shared: the blocks that the model's shared store probably has, which no instance has.
    """

    def __init__(
        self,
        epoch: int = 0,
        sequence: int = 0,
        *,
        max_blocks: int = _LIMITS.kv_blocks,
        max_instances: int = _LIMITS.instances,
    ) -> None:
        self.epoch = epoch
        self.sequence = sequence
        self.unreadable: dict[str, str] = {}
        self.shared: dict[int, int] = {}
        self._max_blocks, self._max_instances = max_blocks, max_instances
        self._block_count = 0
        self._blocks: dict[str, dict[int, int]] = {}  # Unix milliseconds of the last use, then the bits of tiers
        self._completeness: dict[str, KnownCompleteness] = {}

    # --- queries --------------------------------------------------------------------------------------------------------

    def instances(self) -> tuple[str, ...]:
        """Returns all known instances."""
        return tuple(self._completeness | self._blocks)

    def completeness(self, instance: str) -> KnownCompleteness | None:
        """Returns the completeness of an instance; None for an unknown instance."""
        return self._completeness.get(instance)

    def match(self, hashes: Sequence[int]) -> dict[str, MatchedBlocks]:
        """Returns the instances with the chain's first block, and their depths; the deepest in the
        GPU come first.

        If a shared store has the first block, all instances are returned.
        """
        found, shared = dict[str, MatchedBlocks](), self.shared
        is_shared = bool(hashes) and hashes[0] in shared
        for name in self.instances() if is_shared else tuple(self._blocks):
            blocks, depth, depths = self._blocks.get(name, {}), 0, list[int]()
            for mask in _UP_TO_TIER:
                while depth < len(hashes) and blocks.get(hashes[depth], 0) & mask:
                    depth += 1
                depths.append(depth)
            if depth or is_shared:
                while depth < len(hashes) and (hashes[depth] in shared or hashes[depth] in blocks):
                    depth += 1
                found[name] = depths[0], depths[1], depths[2], depth
        return dict(sorted(found.items(), key=lambda item: item[1], reverse=True))

    def blocks_of(self, instance: str) -> Iterator[tuple[int, StorageTier]]:
        """Yields every block of an instance with each of its tiers."""
        for block_hash, value in self._blocks.get(instance, {}).items():
            for tier in INSTANCE_TIERS:
                if value >> tier & 1:
                    yield block_hash, tier

    def tiers(self, instance: str, block_hash: int) -> int:
        """Returns where an instance has a block: a bit for each tier, 1 for the GPU; 0: nowhere."""
        return self._place(instance).get(block_hash, 0) & _UP_TO_TIER[-1]

    def used_at(self, instance: str, block_hash: int) -> float | None:
        """Returns when an instance or a shared store last used a block, in Unix seconds; None for a
        block that it does not have.
        """
        value = self._place(instance).get(block_hash)
        return None if value is None else (value >> _TIER_BITS) / 1e3

    def count_blocks(self) -> dict[str, BlockCounts]:
        """Returns the block counts of every known instance."""
        owners = Counter(block_hash for blocks in self._blocks.values() for block_hash in blocks)
        found = {name: BlockCounts() for name in self.instances()}
        for name, blocks in self._blocks.items():
            bits = Counter(value & _UP_TO_TIER[-1] for value in blocks.values())
            gpu, cpu, disk = (sum(count for mask, count in bits.items() if mask >> tier & 1) for tier in INSTANCE_TIERS)
            unique = sum(owners[block_hash] == 1 for block_hash in blocks)
            found[name] = BlockCounts(gpu, cpu, disk, len(blocks), unique)
        return found

    def count_distinct(self) -> int:
        """Returns how many different blocks all instances have."""
        return len({block_hash for blocks in self._blocks.values() for block_hash in blocks})

    # --- changes ----------------------------------------------------------------------------------------------------------

    def apply(self, changes: Iterable[Change], wall: float = 0.0) -> None:
        """Applies changes in their order; repetition does no harm.

        wall: when they were written, in Unix seconds.
        """
        for change in changes:
            if isinstance(change, BlocksStored):
                self._add(change.instance, change.hashes, 1 << change.tier, wall)
            elif isinstance(change, BlocksRemoved):
                self._remove(change.instance, change.hashes, 1 << change.tier)
            elif isinstance(change, CompletenessChanged):
                if not is_shared_store(change.instance) and self._has_room_for(change.instance, self._completeness):
                    known = KnownCompleteness(change.complete, change.reason, change.since)
                    self._completeness[change.instance] = known
            elif isinstance(change, InstanceCleared | InstanceDetached):
                self._block_count -= len(self._place(change.instance))
                self._place(change.instance).clear()
                self._blocks.pop(change.instance, None)
                if isinstance(change, InstanceDetached):
                    self._completeness.pop(change.instance, None)

    def load_rows(
        self, instance: str, block_hashes: Sequence[int], counts: Sequence[int], walls: Sequence[float]
    ) -> None:
        """Adds the rows of a snapshot: block hashes, copies by tier (``TIER_SHIFT``), and Unix
        seconds of the last use; rows of 0 copies are empty.
        """
        for block_hash, copies, wall in zip(block_hashes, counts, walls, strict=True):
            bits = sum(1 << tier for tier in INSTANCE_TIERS if copies >> TIER_SHIFT[tier] & MAX_COPIES)
            if bits:
                self._add(instance, (block_hash,), bits, wall)

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _place(self, instance: str) -> dict[int, int]:
        """Returns the blocks of an instance or shared store; others for an unknown instance."""
        return self.shared if is_shared_store(instance) else self._blocks.get(instance, {})

    def _has_room_for(self, instance: str, known: Mapping[str, object]) -> bool:
        return instance in known or len(known) < self._max_instances

    def _add(self, instance: str, hashes: Iterable[int], bits: int, wall: float) -> None:
        if not is_shared_store(instance) and not self._has_room_for(instance, self._blocks):
            return
        blocks = self.shared if is_shared_store(instance) else self._blocks.setdefault(instance, {})
        used = int(wall * 1e3) if 0.0 <= wall < _MAX_WALL else 0
        for block_hash in hashes:
            value = blocks.get(block_hash)
            if value is None:
                if self._block_count >= self._max_blocks:
                    continue
                self._block_count += 1
                value = 0
            both = (value | bits) & _UP_TO_TIER[-1]
            blocks[block_hash] = max(value >> _TIER_BITS, used) << _TIER_BITS | both

    def _remove(self, instance: str, hashes: Iterable[int], bits: int) -> None:
        blocks = self._place(instance)
        for block_hash in hashes:
            value = blocks.get(block_hash, 0) & ~bits
            if value & _UP_TO_TIER[-1]:
                blocks[block_hash] = value
            elif blocks.pop(block_hash, None) is not None:
                self._block_count -= 1


def _failure(why: str) -> UnreadableError:
    return UnreadableError(why, reason="load")


async def load_index(link: RedisLink, model_key: str, wall_offset: float) -> LoadedIndex:
    """Returns a model's current index. Raises UnreadableError if it cannot be loaded.

    wall_offset: Unix time minus monotonic time.
    """
    _, idx, ev = redis_keys.index_keys(model_key)
    replies = await link.run(
        [("HMGET", idx, POSITION_FIELD, META_FIELD), ("HKEYS", idx), ("XRANGE", ev, "-", "+", "COUNT", 1)]
    )
    if replies is None:
        raise _failure(_REDIS_AWAY)
    if any(isinstance(reply, ResponseError) for reply in replies):
        raise _failure("the index in Redis has a wrong type")
    (at_data, meta_data), names, oldest = replies
    at = decode_position(at_data)
    if at is None or not isinstance(meta_data, bytes):
        raise _failure("Redis has no index")
    try:
        meta = decode_value(meta_data, IndexMeta)
    except UnreadableError as error:
        raise _failure(f"the index in Redis cannot be read: {error.message}") from None
    if meta.epoch != at[0]:
        raise _failure("the index in Redis has two epochs")
    if not meta.ready:
        raise _failure(f"{meta.holder} is writing the index")
    loaded = LoadedIndex(at[0], _sequence_before_stream(oldest, at))
    for instance in map(header_instance, sorted(names)):
        if instance is not None:
            await _load_instance(link, idx, instance, loaded, wall_offset)
    await _apply_stream(link, model_key, at[1], loaded, wall_offset)
    return loaded


def _sequence_before_stream(oldest: Any, at: tuple[int, int]) -> int:
    """Returns the sequence before the stream's first entry; 0 if that entry is of another epoch."""
    try:
        epoch, _, sequence = bytes(oldest[0][0]).partition(b"-")
        return int(sequence) - 1 if int(epoch) == at[0] else 0
    except (TypeError, ValueError, IndexError):
        return at[1]  # an empty stream, or none, which the read shows


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


async def _load_instance(link: RedisLink, idx: str, instance: str, loaded: LoadedIndex, wall_offset: float) -> None:
    """Loads an instance or shared store; unreadable values are recorded in ``loaded``. Raises
    UnreadableError if Redis is unreachable.
    """
    try:
        header, columns = await read_instance(link, idx, instance, epoch=loaded.epoch)
        _apply_parts(loaded, instance, header, columns, wall_offset)
    except (UnreadableError, SnapshotError) as error:
        if error.reason == AWAY:
            raise
        if error.reason != GONE:
            loaded.unreadable[instance] = error.message
            why = f"its snapshot cannot be read: {error.message}"
            loaded.apply([CompletenessChanged(instance, False, why, 0.0)])


def _apply_parts(
    loaded: LoadedIndex, instance: str, header: InstanceHeader, columns: dict[str, bytes], wall_offset: float
) -> None:
    """Adds the rows of an instance; others than table 0 are from an earlier release."""
    snapshot, rows = header.slice, []
    for part, data in columns.items():
        if part.startswith("0.m"):
            block_hashes, counts = decode_replica_part(data)
            ticks = decode_ticks(columns.get(part.replace("m", "h"), b""))
            if len(ticks) != len(block_hashes):
                raise SnapshotError(f"part {part} has no ages", reason="missing")
            rows.append((block_hashes, counts, [time_of(tick) + snapshot.wall for tick in ticks]))
    for columns_of_part in rows:
        loaded.load_rows(instance, *columns_of_part)
    since = snapshot.since + snapshot.wall - wall_offset
    loaded.apply([CompletenessChanged(instance, snapshot.complete, snapshot.reason, since)])


async def _apply_stream(link: RedisLink, model_key: str, upto: int, loaded: LoadedIndex, wall_offset: float) -> None:
    """Applies the entries of the stream, at least up to ``upto``. Raises UnreadableError."""
    while True:
        replies = await link.run([read_command(model_key, loaded.epoch, loaded.sequence)])
        if replies is None:
            raise _failure(_REDIS_AWAY)
        if isinstance(replies[0], ResponseError):
            raise _failure("the stream of changes in Redis has a wrong type")
        try:
            entries = parse_entries(replies[0])
            for epoch, sequence, data in entries:
                if (epoch, sequence) != (loaded.epoch, loaded.sequence + 1):
                    raise _failure("the stream of changes has a gap")
                if len(data) > INDEX_ENTRY_BYTES:
                    raise UnreadableError(f"an entry of {len(data)} bytes is too large", reason="bytes")
                wall, changes = decode_entry_with_time(data, wall_offset)
                loaded.apply(changes, wall)
                loaded.sequence = sequence
        except UnreadableError as error:
            if error.reason == "load":
                raise
            at = f"{loaded.epoch}-{loaded.sequence + 1}"
            raise _failure(f"entry {at} cannot be read: {error.message}") from None
        if not entries:
            if loaded.sequence < upto:
                raise _failure("entries of the stream of changes are missing")
            return
