"""How fast a line moves, and with it how long who joins it now will wait: what a Retry-After is made of.

Seconds of engine time that were let go, over the last seconds in which anybody was held. Before anything is known each ready engine
is taken to do one second's work a second.
"""

import math
from typing import Final

WINDOW_SECONDS: Final = 10.0
_ENOUGH_SECONDS: Final = 1.0


class Drain:
    """The pace of one line."""

    def __init__(self) -> None:
        self._work = 0.0
        self._held = 0.0
        self._at = 0.0

    def began(self, now: float) -> None:
        """The first is held: what passed without anybody waiting does not count."""
        self._at = now

    def went(self, own_seconds: float, now: float) -> None:
        """A held request of so much engine time went."""
        self._pass(now)
        self._work += own_seconds

    def rate(self, engines: int, now: float) -> float:
        """Seconds of engine time a second."""
        self._pass(now)
        if self._held < _ENOUGH_SECONDS or self._work <= 0.0:
            return float(max(1, engines))
        return self._work / self._held

    def _pass(self, now: float) -> None:
        seconds = max(0.0, now - self._at)
        fade = math.exp(-seconds / WINDOW_SECONDS)
        self._work *= fade
        self._held = self._held * fade + WINDOW_SECONDS * (1.0 - fade)
        self._at = now
