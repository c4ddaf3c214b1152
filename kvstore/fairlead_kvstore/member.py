"""One instance that an indexer reads, and what it shows of it."""

import asyncio
from dataclasses import dataclass, field

from fairlead.fleet import Instance
from fairlead_kvstore.events.outcomes import Position
from fairlead_kvstore.index.notes import Note
from fairlead_kvstore.reader.line import Counts, Line
from fairlead_kvstore.truth.state import State


@dataclass(frozen=True, slots=True)
class Seen:
    """One instance as status and metrics show it. ``trouble``: why it is not read, in words; empty when it is."""

    instance: str
    model_key: str
    events: str | None
    connected: bool
    replaying: bool
    trouble: str
    state: State
    counts: Counts


@dataclass(slots=True)
class Member:
    """Its line is there once it is known where it publishes. Times are monotonic seconds.

    ``position``: where an earlier indexer was in its stream, until the line has it.
    """

    model_key: str
    instance: Instance
    line: Line | None = None
    position: Position | None = None
    looking: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: str = "it was not asked yet where it publishes"
    gone: bool = False
    adapters: bool = False
    naming: bool = False
    names_asked: float = 0.0
    names_due: float = 0.0
    names_pause: float = 1.0
    unplaced: frozenset[str] = frozenset()

    def note(self, state: State) -> Note:
        """What everybody may know of it, in Redis."""
        seen, line, evicted = self.seen(state), self.line, state.evicted_age_seconds
        lag = seen.counts.lag_seconds
        return Note(
            url=self.instance.url,
            block_size=state.block_size,
            events=seen.events,
            replay=None if line is None else line.endpoints.replay,
            connected=seen.connected,
            replaying=seen.replaying,
            trouble=seen.trouble,
            blocks=state.blocks,
            orphans=state.orphans,
            following=None if line is None else line.following,
            lag_seconds=None if lag is None else round(lag, 3),
            evicted_age_seconds=None if evicted is None else round(evicted, 1),
        )

    def seen(self, state: State) -> Seen:
        """With what the truth knows of it."""
        line = self.line
        if line is None:
            return Seen(self.instance.id, self.model_key, None, False, False, self.trouble, state, Counts())
        trouble = "" if line.connected else self.trouble or line.trouble
        where, replaying = line.endpoints.events, line.replaying
        return Seen(self.instance.id, self.model_key, where, line.connected, replaying, trouble, state, line.counts)
