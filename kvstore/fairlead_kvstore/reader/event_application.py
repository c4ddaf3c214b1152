"""Applies a stream's outcomes to the block store: the pure middle of the reader.

The reader has sockets and timers. For each message, ``EventSequencer`` returns outcomes, and
``EventApplication`` applies them to the block store in slices. The changes go to the indexer's
sink; ``replay_from`` is sent to the replay endpoint. ``apply_outcomes`` does it at once:

    sequencer, store = EventSequencer(replayable=True), BlockStore(secret=secret)
    store.attach("<pod>/8000/0", "default/qwen3-8b", now)
    outcomes = sequencer.on_live_frame(parse_frame(message))
    found = apply_outcomes(store, "<pod>/8000/0", outcomes, now)
    found.changes           BlocksStored, BlocksRemoved, ...: to be written, in order
    found.replay_from       None, or the number from which a replay is to be requested

A usual batch of some slices is applied at once where that is compiled.
"""

import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Final

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import EngineSleep
from fairlead_kvstore.errors import EventsError
from fairlead_kvstore.events.decoder import BLOCK_BYTES, event_slices
from fairlead_kvstore.events.types import (
    AcceptBatch,
    BatchesLost,
    DuplicateBatch,
    ProcessRestarted,
    SequenceGap,
    StreamOutcome,
)
from fairlead_kvstore.native import SCAN_EVENTS

_LIMITS: Final = Limits()
_OUTCOME_BYTES: Final = 16
"""The fixed cost of an outcome, in bytes."""
_SCANNED_SLICES: Final = 8
"""Slices of a usual batch that is applied at once: its blocks take a fifth of the usual time."""
_SCANNED_BLOCK_BYTES: Final = 64
"""The bytes of such slices for each block: at most 1,024 blocks are applied at once."""


class AppliedEvents:
    """The result of applying outcomes: changes in order.

    cost: of the applied events and of what they caused, in bytes.
    replay_from: the number from which to request a replay; None: no replay is needed.
    wall: the engine's clock at the last batch, in Unix seconds; None without a batch.
    """

    def __init__(self, changes: list[Change]) -> None:
        self.changes = changes
        self.cost = 0
        self.replay_from: int | None = None
        self.wall: float | None = None
        self.batches = 0


class EventApplication:
    """The outcomes of one stream that are applied to its instance, a slice at a time.

    A batch of which a part is applied is completed by the next calls of ``run``, before anything
    later. Meanwhile, the position of the stream is ahead of the blocks (``is_busy``).

    counts: gets the numbers of duplicates, gaps whose end is known, losses, restarts and unreadable
    payloads.
    waiting_bytes: size of the payloads that are not applied yet.
    """

    def __init__(
        self, store: BlockStore, instance: str, limits: Limits = _LIMITS, counts: Counter[str] | None = None
    ) -> None:
        self._store = store
        self._instance = instance
        self._limits = limits
        self._counts = Counter[str]() if counts is None else counts
        self._waiting: deque[StreamOutcome | EngineSleep] = deque()
        self._steps: Iterator[int] | None = None
        self._found = AppliedEvents([])
        self._changes: list[Change] = []
        self.waiting_bytes = 0

    @property
    def is_busy(self) -> bool:
        return self._steps is not None or bool(self._waiting)

    def add(self, outcomes: Iterable[StreamOutcome | EngineSleep]) -> None:
        """Adds outcomes behind those that wait."""
        for outcome in outcomes:
            self._waiting.append(outcome)
            if isinstance(outcome, AcceptBatch):
                self.waiting_bytes += len(outcome.payload)

    def run(self, now: float, max_bytes: int) -> AppliedEvents:
        """Applies what waits, up to about ``max_bytes``, and returns the result of this slice."""
        found = self._found = AppliedEvents([])
        while found.cost < max_bytes:
            if self._steps is None:
                if not self._waiting:
                    break
                found.cost += _OUTCOME_BYTES
                self._steps = self._begin(self._waiting.popleft(), now)
            elif (cost := next(self._steps, None)) is None:
                self._steps = None
            else:
                found.cost += cost
        found.changes += self._changes
        self._changes.clear()
        return found

    def _begin(self, outcome: StreamOutcome | EngineSleep, now: float) -> Iterator[int] | None:
        """Returns the steps of an outcome; None for a usual batch that is applied, with all of its
        effects.
        """
        if not isinstance(outcome, AcceptBatch):
            return self._outcome_steps(outcome, now)
        payload, limits, done = outcome.payload, self._limits, 0
        self.waiting_bytes -= len(payload)
        max_bytes = limits.kv_slice_bytes * _SCANNED_SLICES
        if SCAN_EVENTS is not None and len(payload) <= max_bytes:
            scanned = SCAN_EVENTS(
                payload, limits.kv_events_in_batch, limits.kv_event_blocks, limits.kv_event_block_tokens
            )
            if scanned is not None and scanned[2] * _SCANNED_BLOCK_BYTES <= max_bytes:
                self._found.cost += len(payload) + scanned[2] * BLOCK_BYTES
                done = self._store.apply_scanned(self._instance, scanned, now, self._changes)
                if done == len(scanned[3]):
                    self._found.wall = scanned[0]
                    self._found.batches += 1
                    return None
        return self._batch_steps(outcome, done, now)

    def clear(self) -> None:
        """Drops what waits."""
        self._waiting.clear()
        self._steps, self.waiting_bytes = None, 0
        self._changes.clear()

    def _outcome_steps(self, outcome: StreamOutcome | EngineSleep, now: float) -> Iterator[int]:
        if isinstance(outcome, DuplicateBatch):
            self._counts["duplicates"] += 1
        elif isinstance(outcome, SequenceGap):
            self._counts["gaps"] += outcome.last is not None
            self._found.replay_from = outcome.ask
        elif not isinstance(outcome, AcceptBatch):
            self._counts["lost"] += isinstance(outcome, BatchesLost)
            self._counts["restarts"] += isinstance(outcome, ProcessRestarted)
            yield from self._store.apply(self._instance, outcome, now, self._changes)

    def _batch_steps(self, outcome: AcceptBatch, start: int, now: float) -> Iterator[int]:
        """Applies the events of a batch from ``start`` on. An unreadable one counts as lost."""
        store, instance, out = self._store, self._instance, self._changes
        wall: float | None = None
        try:
            for cost, batch in event_slices(outcome.payload, self._limits, start):
                wall = batch.wall
                yield from store.apply(instance, batch, now, out)
                yield cost
        except EventsError as error:
            self._counts[f"unreadable:{error.reason}"] += 1
            lost = BatchesLost(outcome.number, outcome.number, f"a batch cannot be read: {error.reason}")
            yield from store.apply(instance, lost, now, out)
        else:
            self._found.wall = wall
        self._found.batches += 1


def apply_outcomes(
    store: BlockStore,
    instance: str,
    outcomes: Iterable[StreamOutcome],
    now: float,
    limits: Limits = _LIMITS,
    counts: Counter[str] | None = None,
) -> AppliedEvents:
    """Applies a stream's outcomes to its instance in the block store, and returns the changes.

    A payload that cannot be read counts as lost.
    """
    application = EventApplication(store, instance, limits, counts)
    application.add(outcomes)
    return application.run(now, sys.maxsize)
