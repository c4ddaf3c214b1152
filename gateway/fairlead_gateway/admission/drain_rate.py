"""The speed at which a queue drains. `Retry-After` is computed from it.

The drain rate is the engine time of the requests dispatched from the queue, divided by the time for
which any request was queued. Both sums decay over `WINDOW_SECONDS`. Until the rate is known, each
ready instance is assumed to do one second of work per second.
"""

import math
from typing import Final

WINDOW_SECONDS: Final = 10.0
_MIN_SECONDS: Final = 1.0


class DrainRate:
    """The drain rate of one queue."""

    def __init__(self) -> None:
        self._work = 0.0
        self._queued_seconds = 0.0
        self._updated_at = 0.0

    def start(self, now: float) -> None:
        """Called when the queue becomes non-empty: the time before that does not count."""
        self._updated_at = now

    def on_dispatch(self, prefill_seconds: float, now: float) -> None:
        """Counts a queued request that was dispatched."""
        self._advance(now)
        self._work += prefill_seconds

    def rate(self, engines: int, now: float) -> float:
        """Returns the drain rate: seconds of engine time dispatched per second.

        engines: number of ready instances.
        """
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
