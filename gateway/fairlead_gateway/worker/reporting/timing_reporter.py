"""Reports the times of requests, from which the supervisor learns engine profiles.

Times are those of the machine's monotonic clock, so the supervisor can order the events of all
workers.
"""

import asyncio
from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.ipc.batch_sender import BatchSender, MessageSender
from fairlead_gateway.ipc.messages import TimingEvent, TimingEventKind, TimingEvents

# Why: compiled code looks up the members of an Enum, and the names of other modules, each time.
_DISPATCHED: Final = int(TimingEventKind.DISPATCHED)
_FIRST_TOKEN: Final = int(TimingEventKind.FIRST_TOKEN)
_FINISHED: Final = int(TimingEventKind.FINISHED)
_ABANDONED: Final = int(TimingEventKind.ABANDONED)
_UNMEASURED: Final = int(TimingEventKind.UNMEASURED)
_EVENT: Final = TimingEvent


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
        self._add(_EVENT(_DISPATCHED, now, request_id, instance, tokens, cached))

    def on_first_token(self, request_id: str, now: float) -> None:
        """Reports the first token of a stream."""
        self._add(_EVENT(_FIRST_TOKEN, now, request_id))

    def on_finish(self, request_id: str, now: float, cached: int | None, output: int | None) -> None:
        """Reports a complete response.

        cached, output: tokens as the engine reported them.
        """
        cached_tokens = -1.0 if cached is None else float(cached)
        output_tokens = -1.0 if output is None else float(output)
        self._add(_EVENT(_FINISHED, now, request_id, "", 0.0, cached_tokens, output_tokens))

    def on_abandoned(self, request_id: str, now: float) -> None:
        """Reports a failed attempt, or a client that disconnected."""
        self._add(_EVENT(_ABANDONED, now, request_id))

    def on_unmeasured(self, request_id: str, now: float) -> None:
        """Reports a complete response whose tokens say nothing of the time of a step."""
        self._add(_EVENT(_UNMEASURED, now, request_id))

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
