"""The subscription to one engine and rank: its connection, its stream, its replays and their
timers.

    connected        requests a replay that proves the process, and another after
                     ``kv_settle_seconds`` without a message: batches published before the engine
                     knew of its subscriber are in no queue
    batch large      applies it in slices, and reads nothing more of this engine meanwhile
    quiet            requests a replay after every ``kv_idle_check_seconds`` without a message
    broken           suspends the instance and reconnects with growing pauses
    broken for long  treats the process as replaced and drops its blocks
    replay stalled   fails after ``kv_replay_seconds``; its socket is closed, so that no late
                     answer is taken for one of the next replay
    replay over      applies the buffered messages in turns, as the scheduler says
    replay endless   is cut after ``max_kv_replay_seconds``; its rest waits behind other engines'

``EventSequencer``, ``EventApplication`` and ``BlockStore`` decide on the engine's blocks; this
module has only sockets and timers. A defect of the indexer that a message reveals costs this
engine's blocks and nothing else.

One connection to an engine's event publisher. It connects once and does not reconnect.

Why: all messages of one TCP connection come from one process. Unread ones at a break are dropped;
if the process lives, the following replay contains them.

Replay requests to engines.

A replay is read as fast as it arrives, up to a bound.

Why: an engine answers with all batches that it still has from the requested number, as fast as it
can. It drops those that do not fit into its socket's queue.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from fairlead.errors import BadInput
from fairlead_kvstore.blockstore.types import FleetReport
from fairlead_kvstore.errors import MalformedEvents, ProtocolError
from fairlead_kvstore.events.stream_sequencer import EventSequencer, parse_frame, parse_replay_frame, replay_request
from fairlead_kvstore.events.types import EventFrame, ProcessRestarted, StreamOutcome, StreamPosition
from fairlead_kvstore.events.zmtp import message
from fairlead_kvstore.reader.endpoints import EventEndpoints
from fairlead_kvstore.reader.event_application import AppliedEvents, EventApplication
from fairlead_kvstore.reader.fair_scheduler import MESSAGE_OVERHEAD_BYTES
from fairlead_kvstore.reader.namespace_slots import NamespaceSlot
from fairlead_kvstore.reader.reader_context import OneShotTimer, ReaderContext
from fairlead_kvstore.reader.zmtp_connection import (
    ZmtpConnection,
    message_size,
    open_connection,
)


class ReplayConnection(ZmtpConnection):
    """A connection to one engine's replay endpoint. Raises BadInput for an invalid address.

    is_answered: the end of the last requested replay has come. Else the connection cannot be used
    for another one, of which the rest of this replay would seem a part.
    """

    def __init__(self, endpoint: str, subscription: "EngineSubscription", context: ReaderContext) -> None:
        self._subscription = subscription
        self._request = b""
        self.is_answered = True
        max_unread = context.limits.kv_replay_unread_bytes
        is_busy, key = (lambda: subscription.is_busy), subscription.model_key
        super().__init__(endpoint, "DEALER", key, context, is_busy, max_unread=max_unread)

    def request(self, start: int) -> None:
        """Requests all batches from ``start`` on, once it is connected."""
        self._request, self.is_answered = message(replay_request(start)), False
        if self.is_open:
            self.send(self._request)

    def on_opened(self) -> None:
        """Sends the request."""
        self.send(self._request)

    def on_messages(self, messages: list[list[bytes]]) -> None:
        """Passes on one message, see ``_list_bytes``."""
        for parts in messages:
            self._subscription.on_replay_message(parts)

    def on_ended(self, reason: str, *, is_overflow: bool) -> None:
        """Handles the end of the connection."""
        self._subscription.on_replay_cut(reason)

    def _list_bytes(self, left: int) -> int:
        return 1  # after each message the subscription may be busy

    async def _open(self) -> None:
        """Tries to connect until ``close``: an engine may bind this port after that of its events.

        The first try is at least ``kv_reconnect_seconds`` after that of the connection before.
        Why: an engine may close each one after a single batch.
        """
        pause, now = self._context.limits.kv_reconnect_seconds, asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._subscription.next_replay_connection_at - now()))
        self._subscription.next_replay_connection_at = now() + pause
        while True:
            try:
                opened = await open_connection(self._address, self._kind, self._context.limits)
            except (OSError, ProtocolError):
                await asyncio.sleep(pause)
                continue
            self._begin(*opened)
            return


class EventConnection(ZmtpConnection):
    """A subscription to all topics at ``endpoint``. Raises BadInput for an invalid address."""

    def __init__(self, endpoint: str, subscription: "EngineSubscription", context: ReaderContext) -> None:
        self._subscription = subscription
        super().__init__(endpoint, "SUB", subscription.model_key, context, lambda: subscription.is_busy)

    def on_opened(self) -> None:
        """Handles the end of the handshake."""
        self._subscription.on_connected()

    def on_messages(self, messages: list[list[bytes]]) -> None:
        """Passes on the messages of a turn."""
        self._subscription.on_messages(messages)

    def on_ended(self, reason: str, *, is_overflow: bool) -> None:
        """Handles the end of the connection."""
        self._subscription.on_disconnected(reason, is_overflow=is_overflow)


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
        self.model_key = model_key
        self._namespace = model_key.partition("/")[0]
        self.endpoints = endpoints
        self.counts = context.store.counts[model_key]
        self.lag_seconds: float | None = None
        self.is_connected = False
        self.problem = "not connected yet"
        self.next_replay_connection_at = 0.0
        self._context = context
        self._slice_bytes = context.limits.kv_slice_bytes
        self._sequencer = self._new_sequencer(position)
        self._application = EventApplication(context.store, instance, context.limits)
        self._connection: EventConnection | None = None
        self._replay_connection: ReplayConnection | None = None
        self._replay_slot: NamespaceSlot | None = None
        self._replay_from = 0
        self._replay_until = 0.0
        self._is_replay_sent = False
        self._failures = 0
        self._buffered_bytes = 0  # as reported to the context
        self._has_received = False
        self._is_open = True
        self._reconnect_timer, self._away_timer = OneShotTimer(context.loop), OneShotTimer(context.loop)
        self._replay_timer, self._quiet_timer = OneShotTimer(context.loop), OneShotTimer(context.loop)

    @property
    def is_replaying(self) -> bool:
        """Whether frames are buffered until a replay ends, or until all of them are applied."""
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
        """Whether a batch is applied in part, so that no further one may be read."""
        return self._application.is_busy

    def on_reports(self, reports: Iterable[FleetReport]) -> None:
        """Applies reports on the engine after the events that wait."""
        self._application.add(reports)
        self._apply_slice(self._slice_bytes)

    def start(self) -> None:
        """Connects, and reconnects whenever the connection ends."""
        if not self._is_open:
            return
        context = self._context
        try:
            self._connection = EventConnection(self.endpoints.events, self, context)
        except BadInput as error:
            self._connection = None
            self.on_disconnected(error.message)

    def close(self) -> None:
        """Stops reading; the block store keeps its blocks."""
        self._is_open = False
        for timer in (self._reconnect_timer, self._away_timer, self._replay_timer, self._quiet_timer):
            timer.clear()
        self._end_replay(close=True)
        self._application.clear()
        self._report_buffered(0)
        self._context.scheduler.remove(self)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def replace_engine(self, reason: str, endpoints: EventEndpoints | None = None) -> None:
        """Drops the instance's blocks, because another process runs. Connects to its endpoints if
        these are others.
        """
        self._end_replay(close=True)
        self._on_replaced(reason)
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
        """Handles the end of the handshake; the stream may then request a replay."""
        self.is_connected, self.problem, self._has_received = True, "", False
        self.counts["connects"] += 1
        self._away_timer.clear()
        self._quiet_timer.set(KV_SETTLE_SECONDS, self._on_quiet_timer)
        self._apply(self._sequencer.on_connected())

    def on_disconnected(self, reason: str, *, is_overflow: bool = False) -> None:
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
        self._end_replay(close=True)
        self._apply(self._sequencer.on_disconnected())
        if known and not self._away_timer.is_set:
            reason = f"no KV events for {KV_RESTART_SECONDS:g} s"
            self._away_timer.set(KV_RESTART_SECONDS, lambda: self._on_replaced(reason))
        pause = min(MAX_KV_RECONNECT_SECONDS, limits.kv_reconnect_seconds * 2.0**self._failures)
        self._failures = min(self._failures + 1, _MAX_FAILURES)
        self._reconnect_timer.set(pause * (0.5 + 0.5 * self._context.random()), self.start)

    def on_messages(self, messages: list[list[bytes]]) -> None:
        """Handles messages of the subscription. Consecutive frames in order are applied together.

        Why: while an engine decodes, a batch is a block or two, and the fixed cost of a batch
        equals that of the blocks.
        """
        self._has_received, self._failures = True, 0
        counts, read_bytes = self.counts, 0
        following: list[StreamOutcome] = []
        for parts in messages:
            size = message_size(parts)
            read_bytes += size
            if self._has_too_much_waiting(size):
                counts["unreadable:overflow"] += 1  # the next one shows a gap
                continue
            try:
                frame = parse_frame(parts)
            except MalformedEvents as error:
                counts[f"unreadable:{error.reason}"] += 1
                continue
            accepted = self._sequencer.accept_in_order(frame)
            if accepted is not None:
                following.append(accepted)
                continue
            if following:
                self._apply(following)
                following = []
            self._on_live_frame(frame)
        counts["bytes"] += read_bytes
        if following:
            self._apply(following)

    def _has_too_much_waiting(self, size: int) -> bool:
        waiting, context = self._application.waiting_bytes, self._context
        if waiting + size > context.limits.kv_pending_bytes:
            return True
        return waiting > 0 and context.buffered.is_over(self._namespace)

    def _on_live_frame(self, frame: EventFrame) -> None:
        """Handles a frame that is not the next in order."""
        self._apply_slice(self._slice_bytes, lambda: self._sequencer.on_live_frame(frame))
        if self._sequencer.is_replaying and self._context.buffered.is_over(self._namespace):
            self._fail_replay("too much is buffered for the replays of all engines")

    def _report_buffered(self, size: int) -> None:
        if size != self._buffered_bytes:
            self._context.buffered.add(self._namespace, size - self._buffered_bytes)
            self._buffered_bytes = size

    def _on_replaced(self, reason: str) -> None:
        """Begins a new epoch; what waits to be applied belongs to the last one."""
        self._application.clear()
        self._apply(self._sequencer.on_replaced(reason))

    def _on_quiet_timer(self) -> None:
        self._quiet_timer.set(KV_IDLE_CHECK_SECONDS, self._on_quiet_timer)
        self._failures = 0  # the connection has lasted
        self._sequencer.on_interval()
        if not self._has_received:
            self._apply(self._sequencer.on_quiet())
        self._has_received = False

    # --- replays --------------------------------------------------------------------------------------------------------

    def on_replay_message(self, parts: list[bytes]) -> None:
        """Handles one message of a replay. An unreadable message ends the replay as failed."""
        self.counts["bytes"] += message_size(parts)
        try:
            frame = parse_replay_frame(parts)
        except MalformedEvents as error:
            self.counts[f"unreadable:{error.reason}"] += 1
            self._fail_replay("the replay cannot be read")
            return
        if frame is None and self._replay_connection is not None:
            self._replay_connection.is_answered = True
        if self._replay_slot is not None:
            self._set_replay_timer()
        self._apply_slice(self._slice_bytes, lambda: self._sequencer.on_replayed_frame(frame))

    def on_replay_cut(self, reason: str) -> None:
        """Handles a connection for replays that ended: requests the rest if it brought batches."""
        self._replay_connection = None
        if self._is_replay_sent:
            self._fail_replay(reason, is_cut=True)

    def _request_replay(self, start: int) -> None:
        self._replay_from = start
        self.counts["replays"] += 1
        if self._replay_slot is None:
            self._replay_slot = self._context.replay_slots.acquire(self._on_slot_granted, self._namespace)
        elif self._is_replay_sent:  # the stream abandoned the earlier request, or needs the rest
            self._close_replay_connection(is_reusable=True)
            self._send_request()

    def _on_slot_granted(self) -> None:
        self._context.loop.call_soon(self._send_first_request)  # not within another subscription's call

    def _send_first_request(self) -> None:
        if self._replay_slot is not None and self._sequencer.is_replaying and not self._is_replay_sent:
            self._replay_until = self._context.clock.now() + MAX_KV_REPLAY_SECONDS
            self._send_request()

    def _send_request(self) -> None:
        self._is_replay_sent = True
        context, endpoint = self._context, self.endpoints.replay
        try:
            if self._replay_connection is None and endpoint is not None:
                self._replay_connection = ReplayConnection(endpoint, self, context)
        except BadInput as error:
            self._fail_replay(error.message)
            return
        if self._replay_connection is None:
            self._fail_replay("the engine keeps nothing for replays")
            return
        self._set_replay_timer()
        self._replay_connection.request(self._replay_from)

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
        self._end_replay(close=True)
        self._apply(self._sequencer.on_replay_failed(reason, is_cut=is_cut))

    def _end_replay(self, *, close: bool = False) -> None:
        self._replay_timer.clear()
        self._is_replay_sent = False
        if self._replay_slot is not None:
            slot, self._replay_slot = self._replay_slot, None
            slot.release()
        self._close_replay_connection(is_reusable=not close)

    def _close_replay_connection(self, *, is_reusable: bool) -> None:
        """Closes the connection for replays. A reusable one stays if the last replay has ended."""
        if self._replay_connection is not None and not (is_reusable and self._replay_connection.is_answered):
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
        if not self.is_busy:  # also where the batch was dropped
            self._resume_reading()
        used = max(cost, before - self._sequencer.held_bytes)
        return used + MESSAGE_OVERHEAD_BYTES, self._is_open and (self.is_busy or self._sequencer.is_draining)

    def _resume_reading(self) -> None:
        """Schedules reads of the sockets, which were not read while a batch was applied."""
        if self._connection is not None:
            self._connection.mark_ready()
        if self._replay_connection is not None:
            self._replay_connection.mark_ready()

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
        self._end_replay(close=True)
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
        self._report_buffered(waiting if self._is_open else 0)
        self._count(found)
        self._context.on_applied(self.instance, found)
        if not self._is_open:
            return
        if self.is_busy or self._sequencer.is_draining:
            self._context.scheduler.mark_ready(self)
        if found.replay_from is not None and self._sequencer.is_replaying:
            self._request_replay(found.replay_from)
        elif not self._sequencer.is_replaying and self._replay_slot is not None:
            self._end_replay()

    def _count(self, found: AppliedEvents) -> None:
        for name, count in (
            ("batches", found.batches),
            ("duplicates", found.duplicates),
            ("gaps", found.gaps),
            ("lost", found.lost),
            ("restarts", found.restarts),
        ):
            if count:
                self.counts[name] += count
        for reason in found.unreadable:
            self.counts[f"unreadable:{reason}"] += 1
        if found.wall is not None:
            lag = self._context.clock.wall() - found.wall
            self.lag_seconds = lag if -_MAX_LAG_SECONDS < lag < _MAX_LAG_SECONDS else None

    def _new_sequencer(self, position: StreamPosition | None = None) -> EventSequencer:
        endpoints, limits = self.endpoints, self._context.limits
        return EventSequencer(
            replayable=endpoints.replay is not None, buffer=endpoints.buffer, limits=limits, position=position
        )
