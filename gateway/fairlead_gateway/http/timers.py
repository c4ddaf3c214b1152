"""A deadline that is cheap to move: one timer a connection, armed late and seldom.

Setting a deadline on every request would cost a timer each. Here the timer that is already armed is left alone when the new
deadline lies behind it; when it fires too early it is simply armed again.
"""

import asyncio
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
