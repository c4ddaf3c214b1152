"""Ends what takes longer than anything may. All have the same allowance, so the oldest is always the next: one timer for all."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable


class Endable:
    """What can be too late. It knows who began before and after it, so that it can leave the row at once."""

    __slots__ = ("_after", "_before", "_due")

    def __init__(self) -> None:
        self._due = 0.0
        self._before: Endable | None = None
        self._after: Endable | None = None

    @abstractmethod
    def late(self) -> None:
        """The time is over."""


class Overdue:
    """``seconds`` are what each may take, by the clock ``now``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, now: Callable[[], float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._now = now
        self._oldest: Endable | None = None
        self._newest: Endable | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, one: Endable, began: float) -> None:
        """Its time began then: not before that of those who are here."""
        one._due = began + self._seconds
        last = one._before = self._newest
        if last is None:
            self._oldest = one
        else:
            last._after = one
        self._newest = one
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._fire)

    def end(self, one: Endable) -> None:
        """It is done; nothing happens when it had been before."""
        before, after = one._before, one._after
        if before is None and self._oldest is not one:
            return
        one._before = one._after = None
        if before is None:
            self._oldest = after
        else:
            before._after = after
        if after is None:
            self._newest = before
        else:
            after._before = before

    def close(self) -> None:
        """Nobody is watched any more."""
        while self._oldest is not None:
            self.end(self._oldest)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        now = self._now() + 0.001
        while self._oldest is not None:
            one = self._oldest
            if one._due > now:
                self._timer = self._loop.call_later(one._due - now, self._fire)
                return
            self.end(one)
            one.late()
