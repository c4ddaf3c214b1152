"""Ends what takes longer than anything may. All have the same allowance, so the oldest is always the next: one timer for all."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable


class TimeoutEntry:
    """What can be too late. It knows who began before and after it, so that it can leave the row at once."""

    __slots__ = ("_due", "_newer", "_older")

    def __init__(self) -> None:
        self._due = 0.0
        self._older: TimeoutEntry | None = None
        self._newer: TimeoutEntry | None = None

    @abstractmethod
    def on_timeout(self) -> None:
        """The time is over."""


class TimeoutQueue:
    """``seconds`` are what each may take, by the clock ``now``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, now: Callable[[], float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._now = now
        self._oldest: TimeoutEntry | None = None
        self._newest: TimeoutEntry | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, entry: TimeoutEntry, started_at: float) -> None:
        """Its time began then: not before that of those who are here."""
        entry._due = started_at + self._seconds
        older = entry._older = self._newest
        if older is None:
            self._oldest = entry
        else:
            older._newer = entry
        self._newest = entry
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._on_timer)

    def remove(self, entry: TimeoutEntry) -> None:
        """It is done; nothing happens when it had been before."""
        older, newer = entry._older, entry._newer
        if older is None and self._oldest is not entry:
            return
        entry._older = entry._newer = None
        if older is None:
            self._oldest = newer
        else:
            older._newer = newer
        if newer is None:
            self._newest = older
        else:
            newer._older = older

    def clear(self) -> None:
        """Nobody is watched any more."""
        while self._oldest is not None:
            self.remove(self._oldest)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        now = self._now() + 0.001
        while self._oldest is not None:
            entry = self._oldest
            if entry._due > now:
                self._timer = self._loop.call_later(entry._due - now, self._on_timer)
                return
            self.remove(entry)
            entry.on_timeout()
