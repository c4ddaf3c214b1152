"""The subscription to one engine and rank: its connection, its stream, its replays and their
timers.

    connected        requests a replay that proves the process, and another after
                     ``kv_settle_seconds`` without a message: batches published before the engine
                     knew of its subscriber are in no queue
    batch large      applies it in slices, and reads nothing more of this engine meanwhile
    quiet            requests a replay after every ``kv_idle_check_seconds`` without a message
    broken           suspends the instance and reconnects with growing pauses
    broken for long  treats the process as replaced and drops its blocks
    replay stalled   fails after ``kv_replay_seconds``
    replay over      applies the buffered messages in turns, as the scheduler says
    replay endless   is cut after ``max_kv_replay_seconds``; its rest waits behind other engines'

``EventSequencer``, ``EventApplication`` and ``BlockStore`` decide on the engine's blocks; this
module has only sockets and timers. A defect of the indexer that a message reveals costs this
engine's blocks and nothing else.

A replay is read as fast as it arrives, up to a bound. Each has a connection of its own, so that no
late answer is taken for one of the next replay.

Why: an engine answers with all batches that it still has from the requested number, as fast as it
can. It drops those that do not fit into its socket's queue.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from fairlead.errors import BadInput
from fairlead_kvstore.blockstore.types import EngineSleep
from fairlead_kvstore.errors import MalformedEvents
from fairlead_kvstore.events.stream_sequencer import EventSequencer, parse_frame, parse_replay_frame, replay_request
from fairlead_kvstore.events.types import EventFrame, ProcessRestarted, StreamOutcome, StreamPosition
from fairlead_kvstore.events.zmtp import message
from fairlead_kvstore.reader.endpoints import EventEndpoints
from fairlead_kvstore.reader.event_application import AppliedEvents, EventApplication
from fairlead_kvstore.reader.fair_scheduler import MESSAGE_OVERHEAD_BYTES
from fairlead_kvstore.reader.namespace_slots import NamespaceSlot
from fairlead_kvstore.reader.reader_context import OneShotTimer, ReaderContext
from fairlead_kvstore.reader.zmtp_connection import ConnectionHandlers, ZmtpConnection, message_size

MAX_KV_RECONNECT_SECONDS: Final = 2.0
"""Limit: longest pause between attempts to connect, half of it jitter."""
KV_RESTART_SECONDS: Final = 10.0
"""Limit: an engine whose events were away for this long counts as restarted when it returns."""
KV_REPLAY_SECONDS: Final = 10.0
"""Limit: a replay without a batch for this long has failed."""
MAX_KV_REPLAY_SECONDS: Final = 30.0
"""Limit: a whole replay; beyond, it is cut, and its rest waits behind the replays of other engines.
"""
KV_SETTLE_SECONDS: Final = 1.0
"""Limit: after connecting, until events from before the subscription took effect are requested."""
KV_IDLE_CHECK_SECONDS: Final = 15.0
"""Limit: an engine without events for this long is asked whether any were missed, and whether it
restarted.
"""

_LOG: Final = logging.getLogger("fairlead.indexer")
_MAX_FAILURES: Final = 16
"""Pauses between connections grow no further after so many failures."""
_MAX_LAG_SECONDS: Final = 1e10
"""A larger one is no lag: an engine may send any number as its time, finite or not."""


class EngineSubscription:
    """The subscription to the KV events of one instance. The instance must be attached to the block
    store until ``close``.

    position: the position of an earlier indexer whose snapshot the block store has restored.

    counts: of its model, by the names of ``COUNTERS``; unreadable messages as
    ``unreadable:REASON``.
    lag_seconds: delay of the last batch, by the engine's and this process's clocks.
    """

    def __init__(
        self,
        instance: str,
        model_key: str,
        endpoints: EventEndpoints,
        context: ReaderContext,
        *,
        position: StreamPosition | None = None,
    ) -> None:
        self.instance = instance
        self._namespace = model_key.partition("/")[0]
        self.endpoints = endpoints
        self.counts = context.store.counts[model_key]
        self.lag_seconds: float | None = None
        self.is_connected = False
        self.problem = "not connected yet"
        self._context = context
        self._slice_bytes = context.limits.kv_slice_bytes
        self._sequencer = self._new_sequencer(position)
        self._application = EventApplication(context.store, instance, context.limits, self.counts)
        self._connection: ZmtpConnection | None = None
        self._replay_connection: ZmtpConnection | None = None
        self._next_replay_at = 0.0  # when the next such connection may be made
        self._replay_slot: NamespaceSlot | None = None
        self._replay_from = 0
        self._replay_until = 0.0
        self._failures = 0
        self._has_received = False
        self._is_open = True
        self._reconnect_timer, self._away_timer = OneShotTimer(context.loop), OneShotTimer(context.loop)
        self._replay_timer, self._quiet_timer = OneShotTimer(context.loop), OneShotTimer(context.loop)

    @property
    def is_replaying(self) -> bool:
        return self._sequencer.is_replaying or self._sequencer.is_draining

    @property
    def next_number(self) -> int | None:
        """The number of the next batch; None before the first."""
        return self._sequencer.next_number

    @property
    def position(self) -> StreamPosition | None:
        """The position from which the next indexer continues; None before the first batch, and
        while only a part of a batch is applied.
        """
        return None if self.is_busy else self._sequencer.position

    @property
    def is_busy(self) -> bool:
        return self._application.is_busy

    def on_reports(self, reports: Iterable[EngineSleep]) -> None:
        self._application.add(reports)
        self._apply_slice(self._slice_bytes)

    def start(self) -> None:
        """Connects, and reconnects whenever the connection ends."""
        if not self._is_open:
            return
        handlers = ConnectionHandlers(lambda: self.is_busy, self.on_connected, self.on_messages, self.on_disconnected)
        try:
            self._connection = ZmtpConnection(self.endpoints.events, self._namespace, self._context, handlers)
        except BadInput as error:
            self.on_disconnected(error.message)

    def close(self) -> None:
        """Stops reading; the block store keeps its blocks."""
        self._is_open = False
        for timer in (self._reconnect_timer, self._away_timer, self._replay_timer, self._quiet_timer):
            timer.clear()
        self._end_replay()
        self._application.clear()
        self._context.buffered.report(self, self._namespace, 0)
        self._context.scheduler.remove(self)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def replace_engine(self, reason: str, endpoints: EventEndpoints) -> None:
        """Drops the blocks, because another process runs, and connects to its endpoints."""
        self._end_replay()
        self._on_replaced(reason)
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
        """Handles the end of the handshake; the stream may then request a replay."""
        self.is_connected, self.problem, self._has_received = True, "", False
        self.counts["connects"] += 1
        self._away_timer.clear()
        self._quiet_timer.set(KV_SETTLE_SECONDS, self._on_quiet_timer)
        self._apply(self._sequencer.on_connected())

    def on_disconnected(self, reason: str, is_overflow: bool = False) -> None:
        """Handles a connection that ended or could not be made.

        Suspends the stream, and schedules the next connection.

        is_overflow: too much of it was unread, so the next one is made after the longest pause.
        """
        if is_overflow:
            self._failures = _MAX_FAILURES
        limits = self._context.limits
        if self.is_connected:
            self.counts["disconnects"] += 1
        known = self._sequencer.next_number is not None
        self.is_connected, self.problem, self._connection = False, reason, None
        self._quiet_timer.clear()
        self._end_replay()
        self._apply(self._sequencer.on_disconnected())
        if known and not self._away_timer.is_set:
            reason = f"no KV events for {KV_RESTART_SECONDS:g} s"
            self._away_timer.set(KV_RESTART_SECONDS, lambda: self._on_replaced(reason))
        pause = min(MAX_KV_RECONNECT_SECONDS, limits.kv_reconnect_seconds * 2.0**self._failures)
        self._failures = min(self._failures + 1, _MAX_FAILURES)
        self._reconnect_timer.set(pause * (0.5 + 0.5 * self._context.random()), self.start)

    def on_messages(self, messages: list[list[bytes]]) -> None:
        """Handles messages of the subscription, whose frames are applied together.

        Why: while an engine decodes, a batch is a block or two, and the fixed cost of a batch
        equals that of the blocks.
        """
        self._has_received, self._failures = True, 0
        frames: list[EventFrame] = []
        counts, waiting_bytes = self.counts, self._application.waiting_bytes
        for parts in messages:
            size = message_size(parts)
            counts["bytes"] += size
            if waiting_bytes + size > self._context.limits.kv_pending_bytes:
                counts["unreadable:overflow"] += 1  # the next one shows a gap
                continue
            try:
                frames.append(parse_frame(parts))
                waiting_bytes += size
            except MalformedEvents as error:
                counts[f"unreadable:{error.reason}"] += 1
        self._apply_slice(self._slice_bytes, lambda: self._sequencer.on_live_frames(frames))

    def _on_replaced(self, reason: str) -> None:
        self._application.clear()
        self._apply(self._sequencer.on_replaced(reason))

    def _on_quiet_timer(self) -> None:
        self._quiet_timer.set(KV_IDLE_CHECK_SECONDS, self._on_quiet_timer)
        self._failures = 0  # the connection has lasted
        self._apply(self._sequencer.on_interval(is_quiet=not self._has_received))
        self._has_received = False

    # --- replays --------------------------------------------------------------------------------------------------------

    def on_replay_messages(self, messages: list[list[bytes]]) -> None:
        """Handles one message of a replay. An unreadable message ends the replay as failed."""
        (parts,) = messages
        self.counts["bytes"] += message_size(parts)
        try:
            frame = parse_replay_frame(parts)
        except MalformedEvents as error:
            self.counts[f"unreadable:{error.reason}"] += 1
            self._fail_replay("the replay cannot be read")
            return
        if self._replay_slot is not None:
            self._set_replay_timer()
        self._apply_slice(self._slice_bytes, lambda: self._sequencer.on_replayed_frame(frame))

    def _request_replay(self, start: int) -> None:
        self._replay_from = start
        self.counts["replays"] += 1
        if self._replay_slot is None:
            self._replay_slot = self._context.replay_slots.acquire(self._on_slot_granted, self._namespace)
        elif self._replay_connection is not None:  # the stream abandoned it, or needs the rest
            self._replay_connection.close()
            self._send_request()

    def _on_slot_granted(self) -> None:
        self._context.loop.call_soon(self._send_first_request)  # not within another subscription's call

    def _send_first_request(self) -> None:
        if self._replay_slot is not None and self._sequencer.is_replaying and self._replay_connection is None:
            self._replay_until = self._context.clock.now() + MAX_KV_REPLAY_SECONDS
            self._send_request()

    def _send_request(self) -> None:
        """Requests a replay over a new connection, some ``kv_reconnect_seconds`` after the last.

        Why: an engine may close each one after a single batch.
        """
        context, now = self._context, asyncio.get_running_loop().time()
        starts_at = max(now, self._next_replay_at)
        self._next_replay_at = starts_at + context.limits.kv_reconnect_seconds
        self._set_replay_timer()
        try:
            self._replay_connection = ZmtpConnection(
                self.endpoints.replay or "",
                self._namespace,
                context,
                ConnectionHandlers(lambda: self.is_busy, lambda: None, self.on_replay_messages, self._on_replay_cut),
                request=message(replay_request(self._replay_from)),
                delay=starts_at - now,
            )
        except BadInput as error:
            self._fail_replay(error.message)

    def _on_replay_cut(self, reason: str, _: bool) -> None:
        self._fail_replay(reason, is_cut=True)

    def _set_replay_timer(self) -> None:
        """Schedules the end of a replay without a further message, at the latest when its time is
        over.
        """
        left = self._replay_until - self._context.clock.now()
        if left > KV_REPLAY_SECONDS:
            self._replay_timer.set(KV_REPLAY_SECONDS, lambda: self._fail_replay("the replay did not arrive"))
        else:
            text = f"the replay took more than {MAX_KV_REPLAY_SECONDS:g} s"
            self._replay_timer.set(max(0.0, left), lambda: self._fail_replay(text, is_cut=True))

    def _fail_replay(self, reason: str, *, is_cut: bool = False) -> None:
        self.counts["replays_failed"] += 1
        self._end_replay()
        self._apply(self._sequencer.on_replay_failed(reason, is_cut=is_cut))

    def _end_replay(self) -> None:
        self._replay_timer.clear()
        if self._replay_slot is not None:
            slot, self._replay_slot = self._replay_slot, None
            self._context.replay_slots.release(slot)
        if self._replay_connection is not None:
            self._replay_connection.close()
            self._replay_connection = None

    def read(self, max_bytes: int) -> tuple[int, bool]:
        """Continues a batch of which a part is applied, or applies messages that were buffered
        during a replay, see ``ReadSource``.

        Why: a batch takes up to a second, and 64 MiB of buffered ones many seconds.
        """
        before, cost = self._sequencer.held_bytes, 0
        if self._application.is_busy:
            cost = self._apply_slice(max_bytes)
        elif self._sequencer.is_draining:
            cost = self._apply_slice(self._slice_bytes, lambda: self._sequencer.on_drain(max_bytes))
        if not self.is_busy:  # the sockets were not read while a batch was applied; also where it was dropped
            for connection in (self._connection, self._replay_connection):
                if connection is not None:
                    connection.mark_ready()
        used = max(cost, before - self._sequencer.held_bytes)
        return used + MESSAGE_OVERHEAD_BYTES, self._is_open and (self.is_busy or self._sequencer.is_draining)

    # --- outcomes -------------------------------------------------------------------------------------------------------

    def _apply(self, outcomes: list[StreamOutcome]) -> None:
        self._apply_slice(self._slice_bytes, lambda: outcomes)

    def _apply_slice(self, max_bytes: int, outcomes: Callable[[], list[StreamOutcome]] = list) -> int:
        """Applies outcomes behind those that wait, up to a slice; the rest waits for ``read``.
        Returns the cost in bytes.

        An unexpected exception is logged and costs this instance's blocks, not the process.
        """
        try:
            self._application.add(outcomes())
            found = self._application.run(self._context.clock.now(), min(max_bytes, self._slice_bytes))
        except Exception:  # noqa: BLE001  # it is logged
            self._on_defect()
            return 0
        self._handle(found)
        return found.cost

    def _on_defect(self) -> None:
        _LOG.exception("%s: a defect stopped its KV events; its blocks are dropped and learned again", self.instance)
        context = self._context
        self.counts["defects"] += 1
        self._end_replay()
        self._application.clear()
        self._sequencer = EventSequencer(
            replayable=False, limits=context.limits
        )  # a replay would repeat the message for ever
        reason = "a defect of the indexer"
        restart = ProcessRestarted(reason)
        self._handle(AppliedEvents(context.store.apply_at_once(self.instance, restart, context.clock.now())))

    def _handle(self, found: AppliedEvents) -> None:
        """Reports what was applied, and begins or ends a replay as that requires."""
        waiting = self._sequencer.held_bytes + self._application.waiting_bytes
        self._context.buffered.report(self, self._namespace, waiting if self._is_open else 0)
        if found.wall is not None:
            lag = self._context.clock.wall() - found.wall
            self.lag_seconds = lag if -_MAX_LAG_SECONDS < lag < _MAX_LAG_SECONDS else None
        self.counts["batches"] += found.batches
        self._context.on_applied(self.instance, found)
        if not self._is_open:
            return
        if self.is_busy or self._sequencer.is_draining:
            self._context.scheduler.mark_ready(self)
        if found.replay_from is not None and self._sequencer.is_replaying:
            self._request_replay(found.replay_from)
        elif not self._sequencer.is_replaying and self._replay_slot is not None:
            self._end_replay()

    def _new_sequencer(self, position: StreamPosition | None = None) -> EventSequencer:
        endpoints, limits = self.endpoints, self._context.limits
        return EventSequencer(
            replayable=endpoints.replay is not None, buffer=endpoints.buffer, limits=limits, position=position
        )
