"""How fast a line moves, and with it how long who joins it now will wait: what a Retry-After is made of.

Seconds of engine time that were let go, over the last seconds in which anybody was held. Before anything is known each ready engine
is taken to do one second's work a second.
"""

import math
from typing import Final

WINDOW_SECONDS: Final = 10.0
_MIN_SECONDS: Final = 1.0


class DrainRate:
    """The pace of one line."""

    def __init__(self) -> None:
        self._work = 0.0
        self._queued_seconds = 0.0
        self._updated_at = 0.0

    def start(self, now: float) -> None:
        """The first is held: what passed without anybody waiting does not count."""
        self._updated_at = now

    def on_dispatch(self, prefill_seconds: float, now: float) -> None:
        """A held request of so much engine time went."""
        self._advance(now)
        self._work += prefill_seconds

    def rate(self, engines: int, now: float) -> float:
        """Seconds of engine time a second."""
        self._advance(now)
        if self._queued_seconds < _MIN_SECONDS or self._work <= 0.0:
            return float(max(1, engines))
        return self._work / self._queued_seconds

    def _advance(self, now: float) -> None:
        seconds = max(0.0, now - self._updated_at)
        fade = math.exp(-seconds / WINDOW_SECONDS)
        self._work *= fade
        self._queued_seconds = self._queued_seconds * fade + WINDOW_SECONDS * (1.0 - fade)
        self._updated_at = now
