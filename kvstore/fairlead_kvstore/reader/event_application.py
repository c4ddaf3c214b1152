"""From what a stream's frames mean to what the index then holds: the pure middle of the reader.

The reader owns sockets and timers and does three things per message: ``Stream`` says what it means, ``follow`` does it to the
truth, and what comes back is written to Redis in one batch; ``ask`` is sent to the replay endpoint.

    stream, truth = Stream(replayable=True), Truth(secret=secret)
    truth.attach("<pod>/8000/0", "default/qwen3-8b", now)
    found = follow(truth, "<pod>/8000/0", stream.live(parse_frame(message)), now)
    found.changes                        Stored, Removed, Cleared, Marked, ...: to be written, in order
    found.ask                            None, or the number from which a replay is to be requested
    chain = own_hashes(root("default/qwen3-8b", secret=secret), tokens, 16)
    truth.held("<pod>/8000/0", chain)    {Tier.GPU: 12, Tier.CPU: 20, ...}, in blocks from the prompt's start
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
    """What came of some outcomes, in order. ``ask``: request a replay from here. ``unreadable``: reasons, for counters.

    ``wall``: what the engine's clock said at the last batch, Unix seconds. ``gaps`` are numbers that are known to be missing.
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
    """Do what a stream's outcomes ask for to its instance. A payload that cannot be read counts as lost."""
    found = AppliedEvents([])
    changes = found.changes
    for one in outcomes:
        if isinstance(one, AcceptBatch):
            found.batches += 1
            try:
                batch = decode_events(one.payload, limits)
            except EventsError as error:
                found.unreadable += (error.reason,)
                changes += store.on_lost(instance, f"batch {one.number} cannot be read: {error.reason}", now)
            else:
                found.wall = batch.wall
                changes += store.apply(instance, batch, now)
        elif isinstance(one, DuplicateBatch):
            found.duplicates += 1
        elif isinstance(one, SequenceGap):
            found.gaps += one.last is not None
            found.replay_from = one.ask
        elif isinstance(one, BatchesLost):
            found.lost += 1
            changes += store.on_lost(instance, f"{one.reason} ({one.first} to {one.last})", now)
        elif isinstance(one, ProcessRestarted):
            found.restarts += 1
            changes += store.on_restarted(instance, one.reason, now)
        elif isinstance(one, StreamComplete):
            changes += store.on_complete(instance, one.reason, now)
        elif isinstance(one, StreamSuspended):
            changes += store.on_suspended(instance, one.reason, now)
        else:
            changes += store.on_resumed(instance)
    return found
