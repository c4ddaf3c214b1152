"""A deadline that is cheap to move: one timer a connection, armed late and seldom.

Setting a deadline on every request would cost a timer each. Here the timer that is already armed is left alone when the new
deadline lies behind it; when it fires too early it is simply armed again.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Callable


class IdleTimer:
    """Calls ``passed`` once when ``seconds`` after the last ``set`` have gone by without ``clear``."""

    __slots__ = ("_active", "_armed_until", "_due", "_handle", "_loop", "_now", "_on_expired")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_expired: Callable[[], None]) -> None:
        self._loop = loop
        self._now = loop.time
        self._on_expired = on_expired
        self._active = False
        self._due = 0.0
        self._handle: asyncio.TimerHandle | None = None
        self._armed_until = 0.0  # when the handle fires

    def restart(self, seconds: float) -> None:
        """Move the deadline to ``seconds`` from now."""
        due = self._due = self._now() + seconds
        self._active = True
        if self._handle is None:
            self._arm(due)
        elif self._armed_until > due:
            self._handle.cancel()
            self._arm(due)

    def pause(self) -> None:
        """No deadline for now; the timer stays armed and will find nothing to do."""
        self._active = False

    def cancel(self) -> None:
        """No deadline ever again, and no timer left behind; whom it would have called is let go."""
        self._active = False
        self._on_expired = _ignore
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, due: float) -> None:
        self._armed_until = due
        self._handle = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._handle = None
        if not self._active:
            return
        if self._now() < self._due - 0.001:
            self._arm(self._due)
            return
        self._active = False
        self._on_expired()


def _ignore() -> None:
    """Nobody waits any more."""


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
