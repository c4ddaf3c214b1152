"""A deadline that is cheap to move: one timer a connection, armed late and seldom.

Setting a deadline on every request would cost a timer each. Here the timer that is already armed is left alone when the new
deadline lies behind it; when it fires too early it is simply armed again.
"""

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls ``passed`` once when ``seconds`` after the last ``set`` have gone by without ``clear``."""

    __slots__ = ("_due", "_handle", "_loop", "_passed")

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None]) -> None:
        self._loop = loop
        self._passed = passed
        self._due: float | None = None
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Move the deadline to ``seconds`` from now."""
        due = self._due = self._loop.time() + seconds
        handle = self._handle
        if handle is None:
            self._handle = self._loop.call_at(due, self._fire)
        elif handle.when() > due:
            handle.cancel()
            self._handle = self._loop.call_at(due, self._fire)

    def clear(self) -> None:
        """No deadline for now; the timer stays armed and will find nothing to do."""
        self._due = None

    def cancel(self) -> None:
        """No deadline ever again, and no timer left behind; whom it would have called is let go."""
        self._due = None
        self._passed = _nothing
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        due = self._due
        if due is None:
            return
        if self._loop.time() < due - 0.001:
            self._handle = self._loop.call_at(due, self._fire)
            return
        self._due = None
        self._passed()


def _nothing() -> None:
    """Nobody waits any more."""
