"""The state of a writer for one model: leadership, waiting changes, and the content of Redis. Pure.

A snapshot of an instance is *due* in four cases:

- None was written in this epoch, or one with a part of a batch, which is complete now.
- More of its blocks have changed than it has, and more than 4,096. A snapshot thus costs at most as
  much again as the changes.
- So many batches passed that its engine could soon not replay them.
- The stream of changes has to be cut, and the instance needs the stream's oldest end.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import xxhash

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, Change, InstanceDetached
from fairlead_kvstore.index.format import InstanceStatus, encode_part, encode_position, header_field, part_field

INDEX_STREAM_BYTES: Final = 64 * 1024 * 1024
"""Limit: the same in bytes."""

_MIN_CHANGED_BLOCKS: Final = 4_096
MAX_CHANGES_PER_ENTRY: Final = 8_192
"""The changes of one entry, at most: some 5 ms to encode."""


class WrittenItem:
    """The record of a snapshot of one instance in Redis.

    sequence: the snapshot contains all changes up to it.
    blocks: the number of blocks in the snapshot.
    is_partial: the snapshot has a part of a batch.
    """

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.written = False
        self.is_partial = False
        self.blocks = 0
        self.changed = 0
        self.batches = 0
        self.parts: dict[str, tuple[int, bytes]] = {}


class PendingEntry:
    """An entry that was sent and may be written.

    trim: the first sequence that the stream keeps; None: nothing is cut.
    """

    def __init__(self, sequence: int, data: bytes, trim: int | None) -> None:
        self.sequence = sequence
        self.data = data
        self.trim = trim


class ModelWriteState:
    """The writer's state of one model. ``lease`` is empty while another indexer may lead."""

    def __init__(self, model_key: str, limits: Limits) -> None:
        self.model_key = model_key
        self._limits = limits
        self.is_active = False  # the indexer reads this model
        self.lease = b""
        self.epoch = 0
        self.sequence = 0
        self.meta = b""  # the value in Redis, once all snapshots are written
        self.needs_new_epoch = True  # all snapshots must be written in a new epoch
        self.pending: PendingEntry | None = None
        self.items: dict[str, WrittenItem] = {}
        self.obsolete_fields: list[bytes] = []  # fields to delete
        self.renew_at = 0.0
        self.statuses_at = 0.0
        self.written_statuses: tuple[int, Mapping[str, InstanceStatus]] = (0, {})
        self.overflows = 0
        self.overflowed_at: float | None = None  # changes were dropped, and no new epoch is complete
        self.refused_since: float | None = None
        self.problem = ""  # why the index is not written
        self.epochs = 0
        self._fields = 0
        self._waiting: deque[Change] = deque()
        self.waiting_blocks = 0
        self._stream: deque[tuple[int, int]] = deque()
        self._stream_bytes = 0

    # --- changes --------------------------------------------------------------------------------------------------------

    def offer(self, changes: Sequence[Change], batches: int, now: float) -> None:
        """Queues the changes of ``batches`` batches; too many of them are dropped, and require a
        new epoch.

        While a new epoch is required, changes are ignored, since its snapshots contain them.
        """
        if self.needs_new_epoch or not changes:
            return
        touched: dict[str, int] = {}
        total = 0
        for change in changes:
            blocks = _block_count(change)
            total += blocks
            if isinstance(change, InstanceDetached):
                touched.pop(change.instance, None)
                self._forget(change.instance)
                continue
            touched[change.instance] = touched.get(change.instance, 0) + blocks
        self._waiting.extend(changes)
        self.waiting_blocks += total
        for name, blocks in touched.items():
            item = self.items.get(name)
            if item is None:
                item = self.items[name] = WrittenItem(self.sequence)
            item.changed += blocks
            item.batches += batches
        if self.waiting_blocks > self._limits.index_pending_blocks:
            self.require_new_epoch()
            self.overflows += 1
            self.overflowed_at = now

    def require_new_epoch(self) -> None:
        """Drops the waiting changes and requires a new epoch, in which all snapshots are
        written.
        """
        self.needs_new_epoch = True
        self.meta = b""
        self.pending = None
        self._waiting.clear()
        self.waiting_blocks = 0

    @property
    def is_behind(self) -> bool:
        return self.waiting_blocks >= self._limits.index_entry_blocks and self.refused_since is None

    @property
    def waiting_entries(self) -> int:
        """The number of entries that the waiting changes need, at least."""
        blocks, changes = self.waiting_blocks, len(self._waiting)
        entries = 1 + max(blocks // self._limits.index_entry_blocks, changes // MAX_CHANGES_PER_ENTRY)
        return entries + (self.pending is not None)

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting) or self.pending is not None

    def take_changes(self) -> list[Change]:
        """Removes and returns the waiting changes for the next entry, oldest first."""
        found: list[Change] = []
        blocks = 0
        while self._waiting and blocks < self._limits.index_entry_blocks and len(found) < MAX_CHANGES_PER_ENTRY:
            change = self._waiting.popleft()
            found.append(change)
            blocks += _block_count(change)
        self.waiting_blocks = max(0, self.waiting_blocks - blocks) if self._waiting else 0
        return found

    def prepare_entry(self, data: bytes) -> PendingEntry:
        """Makes ``data`` the pending entry with the next sequence, and returns it."""
        trim = self.oldest_needed() + 1
        first = self._stream[0][0] if self._stream else 0
        self.pending = PendingEntry(self.sequence + 1, data, trim if trim > first else None)
        return self.pending

    def on_acknowledged(self) -> None:
        """Records that the pending entry was written."""
        entry, self.pending = self.pending, None
        assert entry is not None
        self.sequence = entry.sequence
        self._stream.append((entry.sequence, len(entry.data)))
        self._stream_bytes += len(entry.data)
        while entry.trim is not None and self._stream and self._stream[0][0] < entry.trim:
            self._stream_bytes -= self._stream.popleft()[1]

    # --- the lease ------------------------------------------------------------------------------------------------------

    def position_value(self) -> bytes:
        return encode_position(self.epoch, self.sequence)

    def possible_position_values(self) -> tuple[bytes, bytes]:
        """Returns the possible values of ``at``: without and with the pending entry."""
        return self.position_value(), self.position_value() if self.pending is None else encode_position(
            self.epoch, self.pending.sequence
        )

    def begin_epoch(self, epoch: int) -> None:
        """Begins a new epoch: no content of Redis counts."""
        self.require_new_epoch()  # drops what waited for the old epoch
        self.needs_new_epoch = False
        self.epoch, self.sequence = epoch, 0
        self.statuses_at = 0.0
        self.epochs += 1
        self.items.clear()
        self.obsolete_fields.clear()
        self._stream.clear()
        self._stream_bytes = 0

    @property
    def has_written_all(self) -> bool:
        return bool(self.lease) and not self.needs_new_epoch and self.pending is None

    def stop_leading(self) -> None:
        self.require_new_epoch()
        self.is_active, self.lease, self.overflowed_at = False, b"", None

    # --- snapshots ------------------------------------------------------------------------------------------------------

    def oldest_needed(self) -> int:
        return min((item.sequence for item in self.items.values()), default=self.sequence)

    def next_due_item(self, max_stream_bytes: int) -> str | None:
        """Returns the instance whose snapshot is due; None without one.

        max_stream_bytes: the stream is cut at half of it.
        """
        limits = self._limits
        for name, item in self.items.items():
            if not item.written:
                return name
            if item.changed > max(_MIN_CHANGED_BLOCKS, item.blocks) or item.batches > limits.index_kept_batches:
                return name
            if item.is_partial and item.batches:
                return name
        long = len(self._stream) > limits.index_stream_entries // 2
        if (long or self._stream_bytes > max_stream_bytes // 2) and self.items:
            oldest = min(self.items, key=lambda name: self.items[name].sequence)
            return oldest if self.items[oldest].sequence < self.sequence else None  # the next entry cuts the stream
        return None

    def record_parts(
        self, name: str, rows: dict[str, bytes], blocks: int
    ) -> tuple[dict[str, bytes], dict[bytes, bytes], list[bytes]]:
        """Records a new snapshot of an instance, of which only changed parts are written.

        Returns the Redis field of each part, the fields to write with their bytes, and the fields
        that no part uses any more.

        rows: the bytes of the parts by name.
        """
        item = self.items.setdefault(name, WrittenItem(self.sequence))
        item.sequence, item.changed, item.batches, item.blocks, item.written = self.sequence, 0, 0, blocks, True
        fresh: dict[bytes, bytes] = {}
        parts: dict[str, tuple[int, bytes]] = {}
        for part, data in rows.items():
            digest = xxhash.xxh3_64_intdigest(data)
            known = item.parts.get(part)
            if known is None or known[0] != digest:
                self._fields += 1
                known = (digest, part_field(self.epoch, self._fields))
                fresh[known[1]] = encode_part(data, digest)
            parts[part] = known
        current = {field for _, field in parts.values()}
        obsolete = [field for _, field in item.parts.values() if field not in current]
        item.parts = parts
        return {part: field for part, (_, field) in parts.items()}, fresh, obsolete

    def _forget(self, name: str) -> None:
        item = self.items.pop(name, None)
        if item is not None:
            self.obsolete_fields += [header_field(name), *(field for _, field in item.parts.values())]


def _block_count(change: Change) -> int:
    if isinstance(change, BlocksStored):  # the usual case, on the hot path
        return len(change.hashes)
    return len(change.hashes) if isinstance(change, BlocksRemoved) else 1
