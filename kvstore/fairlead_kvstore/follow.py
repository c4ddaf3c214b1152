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
from fairlead_kvstore.errors import EventsError
from fairlead_kvstore.events.decode import decode
from fairlead_kvstore.events.outcomes import Accept, Complete, Duplicate, Gap, Lost, Outcome, Restart, Suspended
from fairlead_kvstore.truth.changes import Change
from fairlead_kvstore.truth.truth import Truth

_LIMITS: Final = Limits()


class Followed:
    """What came of some outcomes, in order. ``ask``: request a replay from here. ``unreadable``: reasons, for counters.

    ``wall``: what the engine's clock said at the last batch, Unix seconds. ``gaps`` are numbers that are known to be missing.
    """

    def __init__(self, changes: list[Change]) -> None:
        self.changes = changes
        self.ask: int | None = None
        self.wall: float | None = None
        self.batches = 0
        self.duplicates = 0
        self.gaps = 0
        self.lost = 0
        self.restarts = 0
        self.unreadable: tuple[str, ...] = ()


def follow(truth: Truth, instance: str, outcomes: Iterable[Outcome], now: float, limits: Limits = _LIMITS) -> Followed:
    """Do what a stream's outcomes ask for to its instance. A payload that cannot be read counts as lost."""
    found = Followed([])
    changes = found.changes
    for one in outcomes:
        if isinstance(one, Accept):
            found.batches += 1
            try:
                batch = decode(one.payload, limits)
            except EventsError as error:
                found.unreadable += (error.reason,)
                changes += truth.lost(instance, f"batch {one.number} cannot be read: {error.reason}", now)
            else:
                found.wall = batch.wall
                changes += truth.apply(instance, batch, now)
        elif isinstance(one, Duplicate):
            found.duplicates += 1
        elif isinstance(one, Gap):
            found.gaps += one.last is not None
            found.ask = one.ask
        elif isinstance(one, Lost):
            found.lost += 1
            changes += truth.lost(instance, f"{one.reason} ({one.first} to {one.last})", now)
        elif isinstance(one, Restart):
            found.restarts += 1
            changes += truth.restarted(instance, one.reason, now)
        elif isinstance(one, Complete):
            changes += truth.whole(instance, one.reason, now)
        elif isinstance(one, Suspended):
            changes += truth.suspended(instance, one.reason, now)
        else:
            changes += truth.resumed(instance)
    return found
