"""A deadline that is cheap to move: one timer a connection, armed late and seldom.

Setting a deadline on every request would cost a timer each. Here the timer that is already armed is left alone when the new
deadline lies behind it; when it fires too early it is simply armed again.
"""

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls ``passed`` once when ``seconds`` after the last ``set`` have gone by without ``clear``."""

    __slots__ = ("_armed", "_due", "_handle", "_loop", "_now", "_passed", "_waits")

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None]) -> None:
        self._loop = loop
        self._now = loop.time
        self._passed = passed
        self._waits = False
        self._due = 0.0
        self._handle: asyncio.TimerHandle | None = None
        self._armed = 0.0  # when the handle fires

    def set(self, seconds: float) -> None:
        """Move the deadline to ``seconds`` from now."""
        due = self._due = self._now() + seconds
        self._waits = True
        if self._handle is None:
            self._arm(due)
        elif self._armed > due:
            self._handle.cancel()
            self._arm(due)

    def clear(self) -> None:
        """No deadline for now; the timer stays armed and will find nothing to do."""
        self._waits = False

    def cancel(self) -> None:
        """No deadline ever again, and no timer left behind; whom it would have called is let go."""
        self._waits = False
        self._passed = _nothing
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, due: float) -> None:
        self._armed = due
        self._handle = self._loop.call_at(due, self._fire)

    def _fire(self) -> None:
        self._handle = None
        if not self._waits:
            return
        if self._now() < self._due - 0.001:
            self._arm(self._due)
            return
        self._waits = False
        self._passed()


def _nothing() -> None:
    """Nobody waits any more."""
