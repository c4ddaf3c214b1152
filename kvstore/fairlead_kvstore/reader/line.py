"""One engine and rank, followed: its connection, its stream, the replays it needs, and the clocks that say when to give up.

    connected        Stream asks for a replay that proves who is there; so does ``kv_settle_seconds`` later, if nothing was heard:
                     what was published before the engine knew of its new listener is in no queue
    quiet            asked again every ``kv_quiet_seconds`` in which nothing comes
    broken           the slice is suspended; a new connection is tried with growing pauses
    broken for long  ``replaced``: what was held of it is dropped
    a replay that brings nothing for ``kv_replay_seconds`` has failed; its socket is closed, so that no late answer is taken for
                     one of the next replay

What becomes of the engine's blocks is decided in ``Stream``, ``follow`` and ``Truth``; here are only sockets and timers. A defect of
ours that a message brings to light costs this engine's slice and nothing else.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import zmq

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead_kvstore.errors import Malformed
from fairlead_kvstore.events.outcomes import Frame, Outcome, Position
from fairlead_kvstore.events.sequence import Stream, parse_frame, parse_replay
from fairlead_kvstore.follow import Followed, follow
from fairlead_kvstore.reader.endpoints import Endpoints
from fairlead_kvstore.reader.link import Link
from fairlead_kvstore.reader.replay import Asking, Places, Ticket
from fairlead_kvstore.reader.sockets import Sockets, size
from fairlead_kvstore.reader.timers import Alarm, Loop
from fairlead_kvstore.reader.turns import Turns
from fairlead_kvstore.truth.truth import Truth

_LOG: Final = logging.getLogger("fairlead.indexer")


class Deliver(Protocol):
    """Who is told of what changed. It may neither block nor raise."""

    def __call__(self, line: "Line", found: Followed) -> None:
        """What came of one message, or of one thing that happened."""
        ...


@dataclass(frozen=True, slots=True)
class Kit:
    """What all lines of one indexer share. ``chance`` draws evenly from 0 to 1."""

    truth: Truth
    deliver: Deliver
    sockets: Sockets
    turns: Turns
    places: Places
    loop: Loop
    clock: Clock
    chance: Callable[[], float]
    limits: Limits


@dataclass(slots=True)
class Counts:
    """Since the line began. ``unreadable`` by reason; ``lag_seconds``: by the engine's clock and ours, at the last batch."""

    batches: int = 0
    bytes: int = 0
    duplicates: int = 0
    gaps: int = 0
    lost: int = 0
    restarts: int = 0
    replays: int = 0
    replays_failed: int = 0
    connects: int = 0
    disconnects: int = 0
    defects: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    lag_seconds: float | None = None


class Line:
    """The instance must be attached in ``kit.truth`` as long as the line is open. An endpoint of None is one that dials us.

    ``position``: where an earlier indexer was, whose slice the truth has restored.
    """

    def __init__(self, instance: str, endpoints: Endpoints, kit: Kit, *, position: Position | None = None) -> None:
        self.instance = instance
        self.endpoints = endpoints
        self.counts = Counts()
        self.connected = False
        self.trouble = "it was not connected to yet"
        self._kit = kit
        self._stream = self._new_stream(position)
        self._link: Link | None = None
        self._asking: Asking | None = None
        self._ticket: Ticket | None = None
        self._wanted = 0
        self._sent = False
        self._failures = 0
        self._heard = False
        self._open = True
        self._again, self._away = Alarm(kit.loop), Alarm(kit.loop)
        self._patience, self._quiet = Alarm(kit.loop), Alarm(kit.loop)

    @property
    def replaying(self) -> bool:
        """Whether what comes is held back until a replay ends."""
        return self._stream.replaying

    @property
    def following(self) -> int | None:
        """The number of the batch that comes next; None before the first."""
        return self._stream.expected

    @property
    def position(self) -> Position | None:
        """Where the next indexer may go on."""
        return self._stream.position

    def start(self) -> None:
        """Connect, and again whenever that ends."""
        if self.endpoints.events is None or not self._open:
            return
        kit = self._kit
        try:
            self._link = Link(
                self.endpoints.events, self, sockets=kit.sockets, turns=kit.turns, loop=kit.loop, limits=kit.limits
            )
        except zmq.ZMQError as error:
            self._link = None
            self.down(f"{self.endpoints.events}: {error}")

    def close(self) -> None:
        """Stop reading; the truth keeps what it has."""
        self._open = False
        for alarm in (self._again, self._away, self._patience, self._quiet):
            alarm.clear()
        self._end_replay(close=True)
        if self._link is not None:
            self._link.close()
            self._link = None

    def replaced(self, reason: str, endpoints: Endpoints | None = None) -> None:
        """It is known from elsewhere that another process is there, perhaps under another address."""
        self._end_replay(close=True)
        self._do(self._stream.replaced(reason))
        if endpoints is None or endpoints == self.endpoints:
            return
        self.endpoints = endpoints
        self._stream = self._new_stream()
        if self._link is not None:
            self._link.close()
            self._link = None
        self.connected = False
        self._again.clear()
        self.start()

    # --- the connection -------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Both sides have greeted each other."""
        self.connected, self.trouble, self._failures, self._heard = True, "", 0, False
        self.counts.connects += 1
        self._away.clear()
        self._quiet.set(self._kit.limits.kv_settle_seconds, self._is_quiet)
        self._do(self._stream.connected())

    def down(self, reason: str) -> None:
        """The connection is over, or was never there."""
        limits = self._kit.limits
        if self.connected:
            self.counts.disconnects += 1
        known = self._stream.expected is not None
        self.connected, self.trouble, self._link = False, reason, None
        self._quiet.clear()
        self._end_replay(close=True)
        self._do(self._stream.disconnected())
        if known and not self._away.pending:
            self._away.set(limits.kv_away_seconds, self._stays_away)
        if self.endpoints.events is not None:
            pause = min(limits.kv_reconnect_most_seconds, limits.kv_reconnect_seconds * 2.0**self._failures)
            self._failures = min(self._failures + 1, 16)
            self._again.set(pause * (0.5 + 0.5 * self._kit.chance()), self.start)

    def heard(self, messages: list[list[bytes]]) -> None:
        """Messages of the subscription. Those that simply follow are followed together: while an engine decodes a batch is a block or
        two, and what is done once for each batch costs as much as the blocks."""
        self._heard = True
        counts = self.counts
        following: list[Outcome] = []
        for parts in messages:
            counts.bytes += size(parts)
            try:
                frame = parse_frame(parts)
            except Malformed as error:
                counts.unreadable[error.reason] += 1
                continue
            accepted = self._stream.in_order(frame)
            if accepted is not None:
                following.append(accepted)
                continue
            if following:
                self._do(following)
                following = []
            self._live(frame)
        if following:
            self._do(following)

    def _live(self, frame: Frame) -> None:
        """One that does not simply follow."""
        self._guarded(lambda: self._stream.live(frame))

    def _stays_away(self) -> None:
        self._do(self._stream.replaced(f"its events stayed away for {self._kit.limits.kv_away_seconds:g} s"))

    def _is_quiet(self) -> None:
        self._quiet.set(self._kit.limits.kv_quiet_seconds, self._is_quiet)
        if not self._heard:
            self._do(self._stream.quiet())
        self._heard = False

    # --- replays --------------------------------------------------------------------------------------------------------

    def answered(self, parts: list[bytes]) -> None:
        """One message of a replay."""
        limits = self._kit.limits
        self.counts.bytes += size(parts)
        try:
            frame = parse_replay(parts)
        except Malformed as error:
            self.counts.unreadable[error.reason] += 1
            self._failed("the replay cannot be read")
            return
        if self._ticket is not None:
            self._patience.set(limits.kv_replay_seconds, self._too_slow)
        self._guarded(lambda: self._stream.replayed(frame))

    def _ask(self, start: int) -> None:
        self._wanted = start
        self.counts.replays += 1
        if self._ticket is None:
            self._ticket = self._kit.places.ticket(self._granted)
        elif self._sent:  # the one before was given up by the stream, which knows what is still to come of it
            self._send()
        else:
            self._stream.never_asked()

    def _granted(self) -> None:
        self._kit.loop.call_soon(self._first)  # never from within what somebody else does

    def _first(self) -> None:
        if self._ticket is not None and self._stream.replaying and not self._sent:
            self._send()

    def _send(self) -> None:
        self._sent = True
        kit, endpoint = self._kit, self.endpoints.replay
        try:
            if self._asking is None and endpoint is not None:
                self._asking = Asking(
                    endpoint, self, sockets=kit.sockets, turns=kit.turns, loop=kit.loop, limits=kit.limits
                )
        except zmq.ZMQError as error:
            self._failed(f"{endpoint}: {error}")
            return
        if self._asking is None or not self._asking.ask(self._wanted):
            self._failed("no replay could be asked for")
            return
        self._patience.set(kit.limits.kv_replay_seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._failed("the replay did not come")

    def _failed(self, reason: str) -> None:
        self.counts.replays_failed += 1
        self._end_replay(close=True)
        self._do(self._stream.replay_failed(reason))

    def _end_replay(self, *, close: bool) -> None:
        self._patience.clear()
        self._sent = False
        if self._ticket is not None:
            ticket, self._ticket = self._ticket, None
            ticket.give_back()
        if close and self._asking is not None:
            self._asking.close()
            self._asking = None

    # --- what it means --------------------------------------------------------------------------------------------------

    def _do(self, outcomes: list[Outcome]) -> None:
        self._guarded(lambda: outcomes)

    def _guarded(self, outcomes: Callable[[], list[Outcome]]) -> None:
        """Do what the stream says; a defect of ours that shows up in it costs the slice, not the process."""
        kit = self._kit
        try:
            found = follow(kit.truth, self.instance, outcomes(), kit.clock.now(), kit.limits)
        except Exception:  # noqa: BLE001  # it is told
            _LOG.exception("%s: its events cannot be followed, its slice is learned anew", self.instance)
            self.counts.defects += 1
            self._end_replay(close=True)
            self._stream = Stream(replayable=False, limits=kit.limits)  # the same message would be replayed for ever
            found = Followed(kit.truth.restarted(self.instance, "a defect of the indexer", kit.clock.now()))
        self._count(found)
        kit.deliver(self, found)
        if found.ask is not None and self._stream.replaying:
            self._ask(found.ask)
        elif not self._stream.replaying and self._ticket is not None:
            if not self._sent:
                self._stream.never_asked()
            self._end_replay(close=False)

    def _count(self, found: Followed) -> None:
        counts = self.counts
        counts.batches += found.batches
        counts.duplicates += found.duplicates
        counts.gaps += found.gaps
        counts.lost += found.lost
        counts.restarts += found.restarts
        if found.unreadable:
            counts.unreadable.update(found.unreadable)
        if found.wall is not None:
            counts.lag_seconds = self._kit.clock.wall() - found.wall

    def _new_stream(self, position: Position | None = None) -> Stream:
        where, limits = self.endpoints, self._kit.limits
        return Stream(replayable=where.replay is not None, buffer=where.buffer, limits=limits, position=position)
