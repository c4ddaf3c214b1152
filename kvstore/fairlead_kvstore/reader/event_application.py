"""Applies a stream's outcomes to the block store: the pure middle of the reader.

The reader has sockets and timers. For each message, ``EventSequencer`` returns outcomes and
``apply_outcomes`` applies them to the block store. The changes are written to Redis in one batch;
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

from collections.abc import Iterable
from typing import Final

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.errors import EventsError
from fairlead_kvstore.events.decoder import decode_events
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

_LIMITS: Final = Limits()


class AppliedEvents:
    """The result of applying outcomes: changes in order, and counts.

    replay_from: the number from which to request a replay; None: no replay is needed.
    wall: the engine's clock at the last batch, in Unix seconds; None without a batch.
    gaps: number of gaps whose end is known.
    lost: number of gaps that will not be filled.
    unreadable: the reason for each unreadable payload.
    """

    def __init__(self, changes: list[Change]) -> None:
        self.changes = changes
        self.replay_from: int | None = None
        self.wall: float | None = None
        self.batches = 0
        self.duplicates = 0
        self.gaps = 0
        self.lost = 0
        self.restarts = 0
        self.unreadable: tuple[str, ...] = ()


def apply_outcomes(
    store: BlockStore, instance: str, outcomes: Iterable[StreamOutcome], now: float, limits: Limits = _LIMITS
) -> AppliedEvents:
    """Applies a stream's outcomes to its instance in the block store, and returns the changes.

    A payload that cannot be read counts as lost.
    """
    found = AppliedEvents([])
    changes = found.changes
    for outcome in outcomes:
        if isinstance(outcome, AcceptBatch):
            found.batches += 1
            try:
                batch = decode_events(outcome.payload, limits)
            except EventsError as error:
                found.unreadable += (error.reason,)
                changes += store.drop_after_lost_batches(
                    instance, f"batch {outcome.number} cannot be read: {error.reason}", now
                )
            else:
                found.wall = batch.wall
                changes += store.apply(instance, batch, now)
        elif isinstance(outcome, DuplicateBatch):
            found.duplicates += 1
        elif isinstance(outcome, SequenceGap):
            found.gaps += outcome.last is not None
            found.replay_from = outcome.ask
        elif isinstance(outcome, BatchesLost):
            found.lost += 1
            changes += store.drop_after_lost_batches(
                instance, f"{outcome.reason} ({outcome.first} to {outcome.last})", now
            )
        elif isinstance(outcome, ProcessRestarted):
            found.restarts += 1
            changes += store.on_restarted(instance, outcome.reason, now)
        elif isinstance(outcome, StreamComplete):
            changes += store.mark_complete(instance, outcome.reason, now)
        elif isinstance(outcome, StreamSuspended):
            changes += store.on_stream_suspended(instance, outcome.reason, now)
        else:
            changes += store.on_stream_resumed(instance)
    return found
