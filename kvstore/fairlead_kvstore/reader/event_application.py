"""Applies a stream's outcomes to the block store: the pure middle of the reader.

The reader has sockets and timers. For each message, ``EventSequencer`` returns outcomes and
``apply_outcomes`` applies them to the block store. The indexer applies them in slices, with
``EventApplication``. The changes are written to Redis in one batch;
``replay_from`` is sent to the replay endpoint.

    sequencer, store = EventSequencer(replayable=True), BlockStore(secret=secret)
    store.attach("<pod>/8000/0", "default/qwen3-8b", now)
    outcomes = sequencer.on_live_frame(parse_frame(message))
    found = apply_outcomes(store, "<pod>/8000/0", outcomes, now)
    found.changes           BlocksStored, BlocksRemoved, ...: to be written, in order
    found.replay_from       None, or the number from which a replay is to be requested
    chain = block_hashes(chain_root("default/qwen3-8b", secret=secret), tokens, 16)
    store.cached_depths("<pod>/8000/0", chain)    {StorageTier.GPU: 12, ...}, in blocks
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.errors import EventsError
from fairlead_kvstore.events.decoder import decode_events
from fairlead_kvstore.events.event_slices import BLOCK_BYTES, batch_cost, event_slices
from fairlead_kvstore.events.payloads import EventBatch
from fairlead_kvstore.events.types import (
    AcceptBatch,
    BatchesLost,
    DuplicateBatch,
    ProcessRestarted,
    SequenceGap,
    StreamComplete,
    StreamOutcome,
    StreamSuspended,
)
from fairlead_kvstore.native import SCAN_EVENTS, ScannedBatch

_LIMITS: Final = Limits()
_OUTCOME_BYTES: Final = 16
"""The fixed cost of an outcome, in bytes."""


class AppliedEvents:
    """The result of applying outcomes: changes in order, and counts.

    cost: of the applied events and of what they caused, in bytes.
    replay_from: the number from which to request a replay; None: no replay is needed.
    wall: the engine's clock at the last batch, in Unix seconds; None without a batch.
    gaps: number of gaps whose end is known.
    lost: number of gaps that will not be filled.
    unreadable: the reason for each unreadable payload.
    """

    def __init__(self, changes: list[Change]) -> None:
        self.changes = changes
        self.cost = 0
        self.replay_from: int | None = None
        self.wall: float | None = None
        self.batches = 0
        self.duplicates = 0
        self.gaps = 0
        self.lost = 0
        self.restarts = 0
        self.unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """The source of an adapter, as the engine has reported it."""

    name: str
    place: str


class EventApplication:
    """The outcomes of one stream that are applied to its instance, a slice at a time.

    A batch of which a part is applied is completed by the next calls of ``run``, before anything
    later. Meanwhile, the position of the stream is ahead of the blocks (``is_busy``).

    waiting_bytes: size of the payloads that are not applied yet.
    """

    def __init__(self, store: BlockStore, instance: str, limits: Limits = _LIMITS) -> None:
        self._store = store
        self._instance = instance
        self._limits = limits
        self._waiting: deque[StreamOutcome | AdapterSource] = deque()
        self._steps: Iterator[int] | None = None
        self._found = AppliedEvents([])
        self._changes: list[Change] = []
        self.waiting_bytes = 0

    @property
    def is_busy(self) -> bool:
        """Whether outcomes wait, or a part of a batch."""
        return self._steps is not None or bool(self._waiting)

    def add(self, outcomes: Iterable[StreamOutcome | AdapterSource]) -> None:
        """Adds outcomes behind those that wait."""
        for outcome in outcomes:
            self._waiting.append(outcome)
            if isinstance(outcome, AcceptBatch):
                self.waiting_bytes += len(outcome.payload)

    def run(self, now: float, most: int) -> AppliedEvents:
        """Applies what waits, up to about ``most`` bytes, and returns the result of this slice."""
        found = self._found = AppliedEvents([])
        spent = 0
        while spent < most:
            if self._steps is None:
                if not self._waiting:
                    break
                outcome = self._waiting.popleft()
                if SCAN_EVENTS is not None and isinstance(outcome, AcceptBatch):
                    scanned = self._scan(outcome.payload)
                    if scanned is not None:
                        self._steps = self._apply_scanned(outcome.payload, scanned, now)
                        spent += batch_cost(outcome.payload, scanned[2], self._limits)
                        if self._steps is None:
                            spent += _OUTCOME_BYTES
                        continue
                self._steps = self._outcome_steps(outcome, now)
            cost = next(self._steps, None)
            if cost is None:
                self._steps = None
                cost = _OUTCOME_BYTES
            spent += cost
        found.changes += self._changes
        self._changes.clear()
        found.cost = spent
        return found

    def _scan(self, payload: bytes) -> ScannedBatch | None:
        """Returns the events of a usual batch of one slice; None for any other."""
        limits = self._limits
        if SCAN_EVENTS is None or len(payload) > limits.kv_slice_bytes:
            return None
        found = SCAN_EVENTS(payload, limits.kv_events_in_batch, limits.kv_event_blocks, limits.kv_event_block_tokens)
        return found if found is not None and found[2] * BLOCK_BYTES <= limits.kv_slice_bytes else None

    def _apply_scanned(self, payload: bytes, scanned: ScannedBatch, now: float) -> Iterator[int] | None:
        """Applies a usual batch at once. Returns the steps of its events that have further effects;
        None when there are none.
        """
        self.waiting_bytes -= len(payload)
        done = self._store.apply_scanned(self._instance, scanned, now, self._changes)
        self._found.wall = scanned[0]
        self._found.batches += 1
        if done == len(scanned[3]):
            return None
        batch = decode_events(payload, self._limits)
        rest = EventBatch(batch.wall, batch.events[done:], batch.rank)
        return self._store.apply_steps(self._instance, rest, now, self._changes)

    def clear(self) -> None:
        """Drops what waits."""
        self._waiting.clear()
        self._steps, self.waiting_bytes = None, 0
        self._changes.clear()

    def _outcome_steps(self, outcome: StreamOutcome | AdapterSource, now: float) -> Iterator[int]:
        store, instance, out = self._store, self._instance, self._changes
        if isinstance(outcome, AcceptBatch):
            yield from self._batch_steps(outcome, now)
        elif isinstance(outcome, AdapterSource):
            yield from store.adapter_source_steps(instance, outcome.name, outcome.place, now, out)
        elif isinstance(outcome, DuplicateBatch):
            self._found.duplicates += 1
        elif isinstance(outcome, SequenceGap):
            self._found.gaps += outcome.last is not None
            self._found.replay_from = outcome.ask
        elif isinstance(outcome, BatchesLost):
            self._found.lost += 1
            reason = f"{outcome.reason} ({outcome.first} to {outcome.last})"
            out += store.drop_after_lost_batches(instance, reason, now)
        elif isinstance(outcome, ProcessRestarted):
            self._found.restarts += 1
            out += store.on_restarted(instance, outcome.reason, now)
        elif isinstance(outcome, StreamComplete):
            out += store.mark_complete(instance, outcome.reason, now)
        elif isinstance(outcome, StreamSuspended):
            out += store.on_stream_suspended(instance, outcome.reason, now)
        else:
            out += store.on_stream_resumed(instance)

    def _batch_steps(self, outcome: AcceptBatch, now: float) -> Iterator[int]:
        """Applies one batch; one that cannot be read to its end counts as lost."""
        store, instance, out = self._store, self._instance, self._changes
        self.waiting_bytes -= len(outcome.payload)
        wall: float | None = None
        try:
            for cost, batch in event_slices(outcome.payload, self._limits):
                wall = batch.wall
                yield from store.apply_steps(instance, batch, now, out)
                yield cost
        except EventsError as error:
            self._found.unreadable += (error.reason,)
            reason = f"batch {outcome.number} cannot be read: {error.reason}"
            out += store.drop_after_lost_batches(instance, reason, now)
        else:
            self._found.wall = wall
        self._found.batches += 1


def apply_outcomes(
    store: BlockStore, instance: str, outcomes: Iterable[StreamOutcome], now: float, limits: Limits = _LIMITS
) -> AppliedEvents:
    """Applies a stream's outcomes to its instance in the block store, and returns the changes.

    A payload that cannot be read counts as lost.
    """
    application = EventApplication(store, instance, limits)
    application.add(outcomes)
    return application.run(now, sys.maxsize)
