"""Reports the times of requests, from which the supervisor learns engine profiles.

Times are those of the machine's monotonic clock, so the supervisor can order the events of all
workers.
"""

import asyncio

from fairlead.limits import Limits
from fairlead_gateway.ipc.batch_sender import BatchSender, MessageSender
from fairlead_gateway.ipc.timing_events import TimingEvent, TimingEventKind, TimingEvents


class TimingReporter:
    """The collector of the timing events of one worker; drops new ones if too many wait."""

    def __init__(self, sender: MessageSender, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._max_events = limits.timing_rows
        self._events: list[TimingEvent] = []
        self._batch = BatchSender(sender, loop, limits.timing_report_seconds, self._take)

    def on_dispatch(self, request_id: str, instance: str, now: float, tokens: float, cached: float) -> None:
        """Reports a dispatched prompt.

        tokens, cached: tokens of the prompt, and those expected in the instance's cache.
        """
        self._add(TimingEvent(TimingEventKind.DISPATCHED, now, request_id, instance, tokens, cached))

    def on_first_token(self, request_id: str, now: float) -> None:
        """Reports the first token of a stream."""
        self._add(TimingEvent(TimingEventKind.FIRST_TOKEN, now, request_id))

    def on_finish(self, request_id: str, now: float, cached: int | None, output: int | None) -> None:
        """Reports a complete response.

        cached, output: tokens as the engine reported them.
        """
        event = TimingEvent(TimingEventKind.FINISHED, now, request_id)
        if cached is not None:
            event.cached = float(cached)
        if output is not None:
            event.output = float(output)
        self._add(event)

    def on_abandoned(self, request_id: str, now: float) -> None:
        """Reports a failed attempt, or a client that disconnected."""
        self._add(TimingEvent(TimingEventKind.ABANDONED, now, request_id))

    def _add(self, event: TimingEvent) -> None:
        if len(self._events) >= self._max_events:
            self._batch.dropped += 1
            return
        if not self._events:
            self._batch.schedule()
        self._events.append(event)

    def _take(self, dropped: int) -> tuple[TimingEvents, int]:
        events, self._events = self._events, []
        return TimingEvents(events, dropped), len(events)
