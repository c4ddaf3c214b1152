"""A model's index as it is in Redis at one moment, for `fairlead index` and for tests.

It is what a gateway recovers at its start, plus all changes in the stream. All changes are needed,
not only those since the oldest snapshot. A new instance is only in the stream until its first
snapshot, and the stream is never cut before that. A change that is in a snapshot already is applied
again, in order, which does no harm. The writer continues during the load. Values that cannot be
read are left out, and the instance is marked incomplete.

Every lookup is exact and walks along the chain: engines may lose a block in the middle. A slower
tier continues where the faster one ends, as when an engine serves a prompt: depths are cumulative.
Blocks in a shared store come last, and only after blocks of an instance or from the start.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from redis.exceptions import ResponseError

from fairlead.errors import first_line
from fairlead.limits import Limits
from fairlead_cli.index.connection import run_commands, unreachable_error
from fairlead_kvstore.blockstore.block_table import MAX_COPIES, TICK_SECONDS, TIER_SHIFT, BlockTable, time_of
from fairlead_kvstore.blockstore.changes import (
    BlocksRemoved,
    BlocksStored,
    Change,
    CompletenessChanged,
    InstanceDetached,
)
from fairlead_kvstore.blockstore.completeness import CompletenessMark
from fairlead_kvstore.blockstore.snapshot import MAX_WALL
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier, is_shared_store
from fairlead_kvstore.errors import UnreadableError
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
)
from fairlead_kvstore.index.recovery import recover_index
from fairlead_kvstore.redis.link import RedisLink

_ENTRIES_PER_READ: Final = 256
_LOAD: Final = "load"
_LIMITS: Final = Limits()
_TIER_BITS: Final = len(INSTANCE_TIERS)
_UP_TO_TIER: Final = (1, 3, 7)
"""The bits of a tier and of all faster ones."""
_ALL_TIERS: Final = _UP_TO_TIER[-1]


MatchedBlocks: TypeAlias = tuple[int, int, int, int]
"""Cached blocks from a chain's start: in the GPU, up to CPU, up to disk, with a shared store."""


class LoadedIndex:
    """The blocks of a model's instances, as of ``epoch`` and ``sequence``.

    Blocks beyond ``max_blocks`` and more instances than a fleet may have are left out.

    at, meta: the position and the epoch in Redis, also of an index that cannot be loaded.
    headers: of all instances of the epoch.
    unreadable: instances whose blocks could not be read and other damaged values, and why.
    shared: the blocks that the model's shared store probably has, which no instance has.
    """

    def __init__(self, *, max_blocks: int = _LIMITS.kv_blocks, max_instances: int = _LIMITS.instances) -> None:
        self.at: tuple[int, int] | None = None
        self.meta: IndexMeta | None = None
        self.epoch = self.sequence = 0
        self.headers: dict[str, InstanceHeader] = {}
        self.unreadable: dict[str, str] = {}
        self.shared: dict[int, int] = {}
        self._max_blocks, self._max_instances = max_blocks, max_instances
        self._block_count = 0
        self._blocks: dict[str, dict[int, int]] = {}  # Unix milliseconds of the last use, then the bits of tiers
        self._completeness: dict[str, CompletenessMark] = {}

    # --- queries --------------------------------------------------------------------------------------------------------

    def instances(self) -> tuple[str, ...]:
        return tuple(self._blocks)

    def completeness(self, instance: str) -> CompletenessMark | None:
        """Returns the completeness of an instance; None for an unknown instance."""
        return self._completeness.get(instance)

    def match(self, instance: str, hashes: Sequence[int]) -> MatchedBlocks:
        """Returns how much of a chain an instance has; nothing of it for an unknown instance."""
        blocks, depth, depths = self._blocks.get(instance, {}), 0, list[int]()
        hashes = hashes if instance in self._blocks else ()
        for mask in _UP_TO_TIER:
            while depth < len(hashes) and blocks.get(hashes[depth], 0) & mask:
                depth += 1
            depths.append(depth)
        while depth < len(hashes) and (hashes[depth] in self.shared or hashes[depth] in blocks):
            depth += 1
        return depths[0], depths[1], depths[2], depth

    def blocks_of(self, instance: str) -> Iterator[tuple[int, StorageTier]]:
        """Yields every block of an instance with each of its tiers."""
        for block_hash, value in self._blocks.get(instance, {}).items():
            for tier in INSTANCE_TIERS:
                if value >> tier & 1:
                    yield block_hash, tier

    def used_at(self, instance: str, block_hash: int) -> float | None:
        """Returns when an instance or a shared store last used a block, in Unix seconds; None for a
        block that it does not have.
        """
        blocks = self.shared if is_shared_store(instance) else self._blocks.get(instance, {})
        value = blocks.get(block_hash)
        return None if value is None else (value >> _TIER_BITS) / 1e3

    # --- changes ----------------------------------------------------------------------------------------------------------

    def apply(self, changes: Iterable[Change], wall: float = 0.0) -> None:
        """Applies changes in their order; repetition does no harm.

        wall: when they were written, in Unix seconds.
        """
        for change in changes:
            instance, blocks = change.instance, self._place(change.instance)
            if blocks is None:
                continue
            if isinstance(change, BlocksStored):
                for block_hash in change.hashes:
                    self._add(blocks, block_hash, 1 << change.tier, wall)
            elif isinstance(change, BlocksRemoved):
                for block_hash in change.hashes:
                    value = blocks.get(block_hash, 0) & ~(1 << change.tier)
                    if value & _ALL_TIERS:
                        blocks[block_hash] = value
                    elif blocks.pop(block_hash, None) is not None:
                        self._block_count -= 1
            elif isinstance(change, CompletenessChanged):
                # The store that instances share is no instance: nothing reports it complete.
                if blocks is not self.shared:
                    self._completeness[instance] = change.complete, change.reason, change.since
            else:
                self._block_count -= len(blocks)
                blocks.clear()
                if isinstance(change, InstanceDetached):
                    self._blocks.pop(instance, None)
                    self._completeness.pop(instance, None)

    def add_table(self, instance: str, table: BlockTable, wall: float) -> None:
        """Adds the blocks of a snapshot. ``wall``: Unix time of tick 0."""
        blocks = self._place(instance)
        if blocks is None:
            return
        for row, copies in enumerate(table.counts):
            bits = sum(1 << tier for tier in INSTANCE_TIERS if copies >> TIER_SHIFT[tier] & MAX_COPIES)
            if bits:
                self._add(blocks, table.block_hashes[row], bits, time_of(table.ticks[row]) + wall)

    # --- Redis ------------------------------------------------------------------------------------------------------------

    async def load(self, link: RedisLink, model_key: str, wall_offset: float) -> None:
        """Loads a model's current index. Raises UnreadableError and IndexUnreachable.

        wall_offset: Unix time minus monotonic time.
        """
        _, idx, ev = redis_keys.index_keys(model_key)
        values, oldest = await run_commands(
            link, ("HMGET", idx, POSITION_FIELD, META_FIELD), ("XRANGE", ev, "-", "+", "COUNT", 1)
        )
        if isinstance(values, ResponseError):
            raise _failure("the index in Redis has a wrong type")
        found = await recover_index(link, model_key, wall_offset)
        if found is None:
            raise unreachable_error(link)
        at_data, meta_data = values
        at = self.at = decode_position(at_data)
        others = {name for name, header in found.headers.items() if at is not None and header.epoch != at[0]}
        self.headers = {name: header for name, header in found.headers.items() if name not in others}
        self.unreadable = {name: why for name, why in found.unreadable.items() if name not in others}
        try:
            self.meta = None if meta_data is None else decode_value(meta_data, IndexMeta)
        except UnreadableError as error:
            self.unreadable["meta"] = error.message
        if at is None or meta_data is None:
            raise _failure("Redis has no index")
        if self.meta is None:
            raise _failure(f"the index in Redis cannot be read: {self.unreadable['meta']}")
        if self.meta.epoch != at[0]:
            raise _failure("the index in Redis has two epochs")
        if not self.meta.ready:
            raise _failure(f"{self.meta.holder} is writing the index")
        self.epoch, self.sequence = at[0], _sequence_before_stream(oldest, at)
        for name, why in sorted(self.unreadable.items()):
            self.apply([CompletenessChanged(name, False, f"its snapshot cannot be read: {why}", 0.0)])
        for name, checkpoint in sorted(found.instances.items()):
            snapshot = checkpoint.slice
            if name not in others and checkpoint.table is not None:
                shift = TICK_SECONDS * round((snapshot.wall - wall_offset) / TICK_SECONDS)
                self.add_table(name, checkpoint.table, snapshot.wall - shift)
                since = snapshot.since + snapshot.wall - wall_offset
                self.apply([CompletenessChanged(name, snapshot.complete, snapshot.reason, since)])
        await self.follow(link, model_key, at[1], wall_offset)

    async def follow(
        self, link: RedisLink, model_key: str, upto: int, wall_offset: float, end: int | None = None
    ) -> None:
        """Applies the next entries of the stream of changes, at least up to the sequence ``upto``,
        and at most up to ``end``. Raises UnreadableError as ``load``.
        """
        while True:
            try:
                entries = await read_entries(link, model_key, self.epoch, self.sequence)
                for epoch, sequence, data in entries:
                    if (epoch, sequence) != (self.epoch, self.sequence + 1):
                        text = f"after {self.epoch}-{self.sequence} comes {epoch}-{sequence}"
                        raise _failure(f"the stream of changes has a gap: {text}")
                    if end is not None and sequence > end:
                        return
                    wall, changes = decode_entry_with_time(data, wall_offset)
                    self.apply(changes, wall)
                    self.sequence = sequence
            except UnreadableError as error:
                if error.reason == _LOAD:
                    raise
                where = f"{self.epoch}-{self.sequence + 1}"
                raise _failure(f"entry {where} cannot be read: {error.message}") from None
            if not entries:
                break
        if self.sequence < upto:
            raise _failure("entries of the stream of changes are missing")

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _place(self, instance: str) -> dict[int, int] | None:
        """Returns the blocks of an instance or shared store; None for an instance above the
        limit.
        """
        if is_shared_store(instance):
            return self.shared
        if instance not in self._blocks and len(self._blocks) < self._max_instances:
            self._blocks[instance] = {}
        return self._blocks.get(instance)

    def _add(self, blocks: dict[int, int], block_hash: int, bits: int, wall: float) -> None:
        value, used = blocks.get(block_hash, 0), int(wall * 1e3) if 0.0 <= wall < MAX_WALL else 0
        if value or self._block_count < self._max_blocks:
            self._block_count += not value
            blocks[block_hash] = max(value >> _TIER_BITS, used) << _TIER_BITS | value & _ALL_TIERS | bits


def _failure(why: str) -> UnreadableError:
    return UnreadableError(why, reason=_LOAD)


def _sequence_before_stream(oldest: Any, at: tuple[int, int]) -> int:
    """Returns the sequence before the stream's first entry; 0 if that entry is of another epoch."""
    try:
        epoch, _, sequence = bytes(oldest[0][0]).partition(b"-")
        return int(sequence) - 1 if int(epoch) == at[0] else 0
    except (TypeError, ValueError, IndexError):
        return at[1]  # an empty stream, or none, which the read shows


async def read_entries(link: RedisLink, model_key: str, epoch: int, sequence: int) -> list[tuple[int, int, bytes]]:
    """Returns epoch, sequence and bytes of the next entries of the stream of changes, without
    waiting. Raises UnreadableError and IndexUnreachable.
    """
    _, _, ev = redis_keys.index_keys(model_key)
    (reply,) = await run_commands(link, ("XREAD", "COUNT", _ENTRIES_PER_READ, "STREAMS", ev, f"{epoch}-{sequence}"))
    if isinstance(reply, ResponseError):
        raise UnreadableError(first_line(reply), reason="shape")
    found = []
    try:
        for name, values in reply[0][1] if reply else ():
            entry_epoch, _, number = bytes(name).partition(b"-")
            found.append((int(entry_epoch), int(number), bytes(values[ENTRY_FIELD])))
    except (TypeError, ValueError, KeyError, IndexError):
        raise UnreadableError("an entry has a wrong type", reason="shape") from None
    return found
