"""What a writer knows of one model: who leads, what waits, what is in Redis already and what has to be written down next. Pure.

An instance is *due* when as many of its blocks have changed as it holds, so that writing it down costs as much again as the
changes themselves, at most; when so many batches went by that its engine could soon not replay them; or when the stream of
changes has to be cut and it is what holds the stream's oldest end.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import xxhash

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.changes import (
    BlocksRemoved,
    BlocksStored,
    Change,
    HintsAdded,
    HintsExpired,
    InstanceDetached,
)
from fairlead_kvstore.index.format import encode_part, encode_position, header_field, part_field
from fairlead_kvstore.index.instance_status import InstanceStatus

HINTS_ITEM: Final = ""
"""Under this name the hints of the model are kept beside its instances, whose names are not empty."""
_MODEL_CHANGES: Final = (HintsAdded, HintsExpired)
_BLOCK_CHANGES: Final = (BlocksStored, BlocksRemoved, *_MODEL_CHANGES)
"""Tuples, since a union would be made anew for every change."""
_MIN_CHANGED_BLOCKS: Final = 4_096


class WrittenItem:
    """What is in Redis of an instance, or of the hints. ``sequence``: everything up to it is; ``blocks`` at that time."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.written = False
        self.blocks = 0
        self.changed = 0
        self.batches = 0
        self.parts: dict[str, tuple[int, bytes]] = {}


class PendingEntry:
    """An entry on its way: sent, perhaps written. ``trim``: the sequence that the stream then begins at."""

    def __init__(self, sequence: int, data: bytes, trim: int | None) -> None:
        self.sequence = sequence
        self.data = data
        self.trim = trim


class ModelWriteState:
    """One model's. ``lease`` is empty while somebody else may lead."""

    def __init__(self, model_key: str, limits: Limits) -> None:
        self.model_key = model_key
        self._limits = limits
        self.is_active = False  # the indexer reads this model for us
        self.lease = b""
        self.epoch = 0
        self.sequence = 0
        self.meta = b""  # what is in Redis, once all was written down
        self.needs_new_epoch = True  # all must be written down in a new epoch
        self.pending: PendingEntry | None = None
        self.items: dict[str, WrittenItem] = {}
        self.obsolete_fields: list[bytes] = []  # fields that are not needed any more
        self.renew_at = 0.0
        self.statuses_at = 0.0
        self.written_statuses: Mapping[str, InstanceStatus] = {}
        self.statuses_epoch = 0
        self.refused_since: float | None = None
        self.description = "not asked yet"
        self.written_blocks = 0
        self.epochs = 0
        self._fields = 0
        self._waiting: deque[Sequence[Change]] = deque()
        self.waiting_blocks = 0
        self._stream: deque[tuple[int, int]] = deque()
        self._stream_bytes = 0

    # --- changes --------------------------------------------------------------------------------------------------------

    def offer(self, changes: Sequence[Change], batches: int = 1) -> None:
        """Keep them, which are of so many batches, until they are written; what is written down as a whole anyway need not wait."""
        if self.needs_new_epoch or not changes:
            return
        self._waiting.append(changes)
        touched: dict[str, int] = {}
        for one in changes:
            blocks = _block_count(one)
            if isinstance(one, InstanceDetached):
                touched.pop(one.instance, None)
                self._forget(one.instance)
            else:
                name = HINTS_ITEM if isinstance(one, _MODEL_CHANGES) else one.instance
                touched[name] = touched.get(name, 0) + blocks
            self.waiting_blocks += blocks
        for name, blocks in touched.items():
            item = self.items.get(name)
            if item is None:
                item = self.items[name] = WrittenItem(self.sequence)
            item.changed += blocks
            item.batches += batches
        if self.waiting_blocks > self._limits.index_pending_blocks:
            self.require_new_epoch()

    def require_new_epoch(self) -> None:
        """What is in Redis, or will be, is not what we know: everything is to be written down in a new epoch."""
        self.needs_new_epoch = True
        self.meta = b""
        self.pending = None
        self._waiting.clear()
        self.waiting_blocks = 0

    @property
    def has_waiting(self) -> bool:
        """Whether something is to be written to the stream."""
        return bool(self._waiting) or self.pending is not None

    def take_changes(self) -> list[Change]:
        """The changes of the next entry, oldest first."""
        found: list[Change] = []
        blocks = 0
        while self._waiting and blocks < self._limits.index_entry_blocks:
            some = self._waiting.popleft()
            found += some
            blocks += sum(map(_block_count, some))
        self.waiting_blocks = max(0, self.waiting_blocks - blocks) if self._waiting else 0
        self.written_blocks += blocks
        return found

    def prepare_entry(self, data: bytes) -> PendingEntry:
        """The entry that is sent next."""
        trim = self.oldest_needed() + 1
        first = self._stream[0][0] if self._stream else 0
        self.pending = PendingEntry(self.sequence + 1, data, trim if trim > first else None)
        return self.pending

    def on_acknowledged(self) -> None:
        """It was written."""
        flight, self.pending = self.pending, None
        assert flight is not None
        self.sequence = flight.sequence
        self._stream.append((flight.sequence, len(flight.data)))
        self._stream_bytes += len(flight.data)
        while flight.trim is not None and self._stream and self._stream[0][0] < flight.trim:
            self._stream_bytes -= self._stream.popleft()[1]

    # --- the lease ------------------------------------------------------------------------------------------------------

    def position_value(self) -> bytes:
        """What ``at`` must be."""
        return encode_position(self.epoch, self.sequence)

    def possible_position_values(self) -> tuple[bytes, bytes]:
        """What it may be: without and with the entry on its way."""
        return self.position_value(), self.position_value() if self.pending is None else encode_position(
            self.epoch, self.pending.sequence
        )

    def begin_epoch(self, epoch: int) -> None:
        """A new epoch: nothing is in Redis that counts."""
        self.require_new_epoch()
        self.needs_new_epoch = False
        self.epoch, self.sequence = epoch, 0
        self.statuses_at = 0.0
        self.epochs += 1
        self.items.clear()
        self.obsolete_fields.clear()
        self._stream.clear()
        self._stream_bytes = 0

    def stop_leading(self) -> None:
        """Another indexer leads."""
        self.require_new_epoch()
        self.is_active, self.lease = False, b""

    # --- writing down ---------------------------------------------------------------------------------------------------

    def oldest_needed(self) -> int:
        """Up to this sequence nobody needs the stream."""
        return min((item.sequence for item in self.items.values()), default=self.sequence)

    def next_due_item(self) -> str | None:
        """The instance to write down next; None when there is none."""
        limits = self._limits
        for name, item in self.items.items():
            if not item.written:
                return name
            if item.changed > max(_MIN_CHANGED_BLOCKS, item.blocks) or item.batches > limits.index_kept_batches:
                return name
        long = len(self._stream) > limits.index_stream_entries // 2
        if (long or self._stream_bytes > limits.index_stream_bytes // 2) and self.items:
            return min(self.items, key=lambda name: self.items[name].sequence)
        return None

    def place_parts(
        self, name: str, rows: dict[str, bytes], blocks: int
    ) -> tuple[dict[str, bytes], dict[bytes, bytes], list[bytes]]:
        """Where the parts of an instance are: all of them by name, those to be written, and fields that are over then."""
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
        kept = {field for _, field in parts.values()}
        over = [field for _, field in item.parts.values() if field not in kept]
        item.parts = parts
        return {part: field for part, (_, field) in parts.items()}, fresh, over

    def _forget(self, name: str) -> None:
        item = self.items.pop(name, None)
        if item is not None:
            self.obsolete_fields += [header_field(name), *(field for _, field in item.parts.values())]


def _block_count(one: Change) -> int:
    return len(one.hashes) if isinstance(one, _BLOCK_CHANGES) else 1
