"""Ends what takes longer than anything may. All have the same allowance, so the oldest is always the next: one timer for all."""

import asyncio
from typing import Protocol


class Endable(Protocol):
    """What can be too late."""

    def late(self) -> None:
        """The time is over."""
        ...


class Overdue:
    """``seconds`` are what each may take."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._due: dict[Endable, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, one: Endable) -> None:
        """Its time begins now."""
        self._due[one] = due = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._fire)

    def end(self, one: Endable) -> None:
        """It is done."""
        self._due.pop(one, None)

    def close(self) -> None:
        """Nobody is watched any more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        now = self._loop.time() + 0.001
        while self._due:
            one, due = next(iter(self._due.items()))
            if due > now:
                self._timer = self._loop.call_at(due, self._fire)
                return
            del self._due[one]
            one.late()
