"""What a worker tells the helper of its requests, so that it can learn from them: when each was sent, first answered and over.

The request's way only puts a few numbers aside; they go out together a second later. Times are those of the machine's monotonic
clock, so the helper can put the rows of all workers in order.
"""

import asyncio
from typing import Protocol

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.ipc.timing_events import TimingEvent, TimingEventKind, TimingEvents


class Sink(Protocol):
    """Where it goes: the channel."""

    def send(self, message: msgspec.Struct) -> bool:
        """False when it was dropped."""
        ...


class TimingReporter:
    """One worker's end."""

    def __init__(self, sender: Sink, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._sender = sender
        self._loop = loop
        self._max_events = limits.timing_rows
        self._seconds = limits.timing_report_seconds
        self._events: list[TimingEvent] = []
        self._dropped = 0

    def on_dispatch(self, request: str, instance: str, now: float, tokens: float, cached: float) -> None:
        """A prompt of ``tokens`` was sent there, of which ``cached`` should be found."""
        self._add(TimingEvent(TimingEventKind.DISPATCHED, now, request, instance, tokens, cached))

    def on_first_token(self, request: str, now: float) -> None:
        """The first token of a stream came."""
        self._add(TimingEvent(TimingEventKind.FIRST_TOKEN, now, request))

    def on_finish(self, request: str, now: float, cached: int | None, output: int | None) -> None:
        """The answer is complete."""
        self._add(
            TimingEvent(
                TimingEventKind.FINISHED,
                now,
                request,
                cached=-1.0 if cached is None else float(cached),
                output=-1.0 if output is None else float(output),
            )
        )

    def on_abandoned(self, request: str, now: float) -> None:
        """It failed there, or its client left."""
        self._add(TimingEvent(TimingEventKind.ABANDONED, now, request))

    def _add(self, row: TimingEvent) -> None:
        if len(self._events) >= self._max_events:
            self._dropped += 1
            return
        if not self._events:
            self._loop.call_later(self._seconds, self._flush)
        self._events.append(row)

    def _flush(self) -> None:
        rows, self._events = self._events, []
        dropped, self._dropped = self._dropped, 0
        if not self._sender.send(TimingEvents(rows, dropped)):
            self._dropped += dropped + len(rows)
