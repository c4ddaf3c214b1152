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

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.errors import MalformedEvents
from fairlead_kvstore.events.stream_sequencer import EventSequencer, parse_frame, parse_replay_frame
from fairlead_kvstore.events.types import EventFrame, StreamOutcome, StreamPosition
from fairlead_kvstore.reader.endpoints import EventEndpoints
from fairlead_kvstore.reader.event_application import AppliedEvents, apply_outcomes
from fairlead_kvstore.reader.fair_scheduler import FairScheduler
from fairlead_kvstore.reader.replay_client import ReplayClient, ReplaySlot, ReplaySlots
from fairlead_kvstore.reader.timers import OneShotTimer, ReaderLoop
from fairlead_kvstore.reader.zmq_connection import ZmqConnection
from fairlead_kvstore.reader.zmq_socket import ZmqSockets, message_size

_LOG: Final = logging.getLogger("fairlead.indexer")


class AppliedCallback(Protocol):
    """Who is told of what changed. It may neither block nor raise."""

    def __call__(self, line: "EngineSubscription", found: AppliedEvents) -> None:
        """What came of one message, or of one thing that happened."""
        ...


@dataclass(frozen=True, slots=True)
class ReaderContext:
    """What all lines of one indexer share. ``chance`` draws evenly from 0 to 1."""

    store: BlockStore
    on_applied: AppliedCallback
    sockets: ZmqSockets
    scheduler: FairScheduler
    replay_slots: ReplaySlots
    loop: ReaderLoop
    clock: Clock
    random: Callable[[], float]
    limits: Limits


@dataclass(slots=True)
class SubscriptionCounters:
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


class EngineSubscription:
    """The instance must be attached in ``kit.truth`` as long as the line is open. An endpoint of None is one that dials us.

    ``position``: where an earlier indexer was, whose slice the truth has restored.
    """

    def __init__(
        self, instance: str, endpoints: EventEndpoints, kit: ReaderContext, *, position: StreamPosition | None = None
    ) -> None:
        self.instance = instance
        self.endpoints = endpoints
        self.counters = SubscriptionCounters()
        self.is_connected = False
        self.problem = "it was not connected to yet"
        self._context = kit
        self._sequencer = self._new_sequencer(position)
        self._connection: ZmqConnection | None = None
        self._replay_client: ReplayClient | None = None
        self._replay_slot: ReplaySlot | None = None
        self._replay_from = 0
        self._is_replay_sent = False
        self._failures = 0
        self._has_received = False
        self._is_open = True
        self._reconnect_timer, self._away_timer = OneShotTimer(kit.loop), OneShotTimer(kit.loop)
        self._replay_timer, self._quiet_timer = OneShotTimer(kit.loop), OneShotTimer(kit.loop)

    @property
    def is_replaying(self) -> bool:
        """Whether what comes is held back until a replay ends."""
        return self._sequencer.is_replaying

    @property
    def next_number(self) -> int | None:
        """The number of the batch that comes next; None before the first."""
        return self._sequencer.next_number

    @property
    def position(self) -> StreamPosition | None:
        """Where the next indexer may go on."""
        return self._sequencer.position

    def start(self) -> None:
        """Connect, and again whenever that ends."""
        if self.endpoints.events is None or not self._is_open:
            return
        kit = self._context
        try:
            self._connection = ZmqConnection(
                self.endpoints.events, self, sockets=kit.sockets, turns=kit.scheduler, loop=kit.loop, limits=kit.limits
            )
        except zmq.ZMQError as error:
            self._connection = None
            self.on_disconnected(f"{self.endpoints.events}: {error}")

    def close(self) -> None:
        """Stop reading; the truth keeps what it has."""
        self._is_open = False
        for alarm in (self._reconnect_timer, self._away_timer, self._replay_timer, self._quiet_timer):
            alarm.clear()
        self._end_replay(close=True)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def replace_engine(self, reason: str, endpoints: EventEndpoints | None = None) -> None:
        """It is known from elsewhere that another process is there, perhaps under another address."""
        self._end_replay(close=True)
        self._apply(self._sequencer.on_replaced(reason))
        if endpoints is None or endpoints == self.endpoints:
            return
        self.endpoints = endpoints
        self._sequencer = self._new_sequencer()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.is_connected = False
        self._reconnect_timer.clear()
        self.start()

    # --- the connection -------------------------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """Both sides have greeted each other."""
        self.is_connected, self.problem, self._failures, self._has_received = True, "", 0, False
        self.counters.connects += 1
        self._away_timer.clear()
        self._quiet_timer.set(self._context.limits.kv_settle_seconds, self._on_quiet_timer)
        self._apply(self._sequencer.on_connected())

    def on_disconnected(self, reason: str) -> None:
        """The connection is over, or was never there."""
        limits = self._context.limits
        if self.is_connected:
            self.counters.disconnects += 1
        known = self._sequencer.next_number is not None
        self.is_connected, self.problem, self._connection = False, reason, None
        self._quiet_timer.clear()
        self._end_replay(close=True)
        self._apply(self._sequencer.on_disconnected())
        if known and not self._away_timer.is_set:
            self._away_timer.set(limits.kv_restart_seconds, self._on_away_timeout)
        if self.endpoints.events is not None:
            pause = min(limits.max_kv_reconnect_seconds, limits.kv_reconnect_seconds * 2.0**self._failures)
            self._failures = min(self._failures + 1, 16)
            self._reconnect_timer.set(pause * (0.5 + 0.5 * self._context.random()), self.start)

    def on_messages(self, messages: list[list[bytes]]) -> None:
        """Messages of the subscription. Those that simply follow are followed together: while an engine decodes a batch is a block or
        two, and what is done once for each batch costs as much as the blocks."""
        self._has_received = True
        counts = self.counters
        following: list[StreamOutcome] = []
        for parts in messages:
            counts.bytes += message_size(parts)
            try:
                frame = parse_frame(parts)
            except MalformedEvents as error:
                counts.unreadable[error.reason] += 1
                continue
            accepted = self._sequencer.accept_in_order(frame)
            if accepted is not None:
                following.append(accepted)
                continue
            if following:
                self._apply(following)
                following = []
            self._on_live_frame(frame)
        if following:
            self._apply(following)

    def _on_live_frame(self, frame: EventFrame) -> None:
        """One that does not simply follow."""
        self._apply_safely(lambda: self._sequencer.on_live_frame(frame))

    def _on_away_timeout(self) -> None:
        self._apply(
            self._sequencer.on_replaced(f"its events stayed away for {self._context.limits.kv_restart_seconds:g} s")
        )

    def _on_quiet_timer(self) -> None:
        self._quiet_timer.set(self._context.limits.kv_idle_check_seconds, self._on_quiet_timer)
        if not self._has_received:
            self._apply(self._sequencer.on_quiet())
        self._has_received = False

    # --- replays --------------------------------------------------------------------------------------------------------

    def on_replay_message(self, parts: list[bytes]) -> None:
        """One message of a replay."""
        limits = self._context.limits
        self.counters.bytes += message_size(parts)
        try:
            frame = parse_replay_frame(parts)
        except MalformedEvents as error:
            self.counters.unreadable[error.reason] += 1
            self._fail_replay("the replay cannot be read")
            return
        if self._replay_slot is not None:
            self._replay_timer.set(limits.kv_replay_seconds, self._on_replay_timeout)
        self._apply_safely(lambda: self._sequencer.on_replayed_frame(frame))

    def _request_replay(self, start: int) -> None:
        self._replay_from = start
        self.counters.replays += 1
        if self._replay_slot is None:
            self._replay_slot = self._context.replay_slots.acquire(self._on_slot_granted)
        elif self._is_replay_sent:  # the one before was given up by the stream, which knows what is still to come of it
            self._send_request()
        else:
            self._sequencer.on_replay_not_sent()

    def _on_slot_granted(self) -> None:
        self._context.loop.call_soon(self._send_first_request)  # never from within what somebody else does

    def _send_first_request(self) -> None:
        if self._replay_slot is not None and self._sequencer.is_replaying and not self._is_replay_sent:
            self._send_request()

    def _send_request(self) -> None:
        self._is_replay_sent = True
        kit, endpoint = self._context, self.endpoints.replay
        try:
            if self._replay_client is None and endpoint is not None:
                self._replay_client = ReplayClient(
                    endpoint, self, sockets=kit.sockets, turns=kit.scheduler, loop=kit.loop, limits=kit.limits
                )
        except zmq.ZMQError as error:
            self._fail_replay(f"{endpoint}: {error}")
            return
        if self._replay_client is None or not self._replay_client.request(self._replay_from):
            self._fail_replay("no replay could be asked for")
            return
        self._replay_timer.set(kit.limits.kv_replay_seconds, self._on_replay_timeout)

    def _on_replay_timeout(self) -> None:
        self._fail_replay("the replay did not come")

    def _fail_replay(self, reason: str) -> None:
        self.counters.replays_failed += 1
        self._end_replay(close=True)
        self._apply(self._sequencer.on_replay_failed(reason))

    def _end_replay(self, *, close: bool) -> None:
        self._replay_timer.clear()
        self._is_replay_sent = False
        if self._replay_slot is not None:
            ticket, self._replay_slot = self._replay_slot, None
            ticket.release()
        if close and self._replay_client is not None:
            self._replay_client.close()
            self._replay_client = None

    # --- what it means --------------------------------------------------------------------------------------------------

    def _apply(self, outcomes: list[StreamOutcome]) -> None:
        self._apply_safely(lambda: outcomes)

    def _apply_safely(self, outcomes: Callable[[], list[StreamOutcome]]) -> None:
        """Do what the stream says; a defect of ours that shows up in it costs the slice, not the process."""
        kit = self._context
        try:
            found = apply_outcomes(kit.store, self.instance, outcomes(), kit.clock.now(), kit.limits)
        except Exception:  # noqa: BLE001  # it is told
            _LOG.exception("%s: its events cannot be followed, its slice is learned anew", self.instance)
            self.counters.defects += 1
            self._end_replay(close=True)
            self._sequencer = EventSequencer(
                replayable=False, limits=kit.limits
            )  # the same message would be replayed for ever
            found = AppliedEvents(kit.store.on_restarted(self.instance, "a defect of the indexer", kit.clock.now()))
        self._count(found)
        kit.on_applied(self, found)
        if found.replay_from is not None and self._sequencer.is_replaying:
            self._request_replay(found.replay_from)
        elif not self._sequencer.is_replaying and self._replay_slot is not None:
            if not self._is_replay_sent:
                self._sequencer.on_replay_not_sent()
            self._end_replay(close=False)

    def _count(self, found: AppliedEvents) -> None:
        counts = self.counters
        counts.batches += found.batches
        counts.duplicates += found.duplicates
        counts.gaps += found.gaps
        counts.lost += found.lost
        counts.restarts += found.restarts
        if found.unreadable:
            counts.unreadable.update(found.unreadable)
        if found.wall is not None:
            counts.lag_seconds = self._context.clock.wall() - found.wall

    def _new_sequencer(self, position: StreamPosition | None = None) -> EventSequencer:
        where, limits = self.endpoints, self._context.limits
        return EventSequencer(
            replayable=where.replay is not None, buffer=where.buffer, limits=limits, position=position
        )
