"""Arrivals: requests and their prompt tokens, counted into bins of half a minute.

Closed bins decide about everything but the last seconds, and the last seconds can only add to them.
So more requests now never lead to fewer replicas now.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from fairlead_autoscaler.core.settings import ScalingSettings

BIN_SECONDS: Final = 30.0
RECENT_SECONDS: Final = 30.0
"""The last seconds, whose ticks show a change."""
PAST_SECONDS: Final = 2_400.0
"""Memory of bins, across change points."""
CLUMP_SECONDS: Final = 600.0
"""Memory of the burstiness."""

_MIN_REQUESTS = 50.0
"""Requests on which the burstiness must rest."""


@dataclass(frozen=True, slots=True)
class ArrivalBin:
    """Arrivals within `seconds`, until `at`.

    prompt: prompt tokens of all requests.
    output: the mean output tokens by which the bin was priced.
    """

    at: float
    seconds: float
    requests: float
    prompt: float
    output: float

    def plus(self, other: "ArrivalBin") -> "ArrivalBin":
        """Returns both as one bin that ends with `other`."""
        return ArrivalBin(
            other.at,
            self.seconds + other.seconds,
            self.requests + other.requests,
            self.prompt + other.prompt,
            other.output,
        )


@dataclass(frozen=True, slots=True)
class ArrivalHistory:
    """Recent arrivals, oldest first.

    bins: closed bins since the last change point.
    open: the bin that is still filling.
    recent: the ticks of the last seconds.
    past: closed bins of the last 40 minutes, across change points.
    clumps, clumps_of: decaying sums over ticks, of half the squared difference to the tick before,
        and of requests.
    """

    bins: tuple[ArrivalBin, ...] = ()
    open: ArrivalBin | None = None
    recent: tuple[ArrivalBin, ...] = ()
    past: tuple[ArrivalBin, ...] = ()
    clumps: float = 0.0
    clumps_of: float = 0.0

    @property
    def burstiness(self) -> float:
        """Variance from tick to tick, in multiples of that of random arrivals; 0 after few
        requests.
        """
        return self.clumps / self.clumps_of if self.clumps_of >= _MIN_REQUESTS else 0.0


def record_tick(history: ArrivalHistory, tick: ArrivalBin, settings: ScalingSettings) -> ArrivalHistory:
    """Returns the history with the arrivals of one tick. A tick without duration is ignored."""
    if tick.seconds <= 0.0:
        return history
    bins, opened, past = history.bins, history.open, history.past
    if opened is not None and opened.seconds >= BIN_SECONDS - 1e-6:
        bins = tuple(closed for closed in (*bins, opened) if closed.at > tick.at - settings.level_seconds)
        past = (*(closed for closed in past if closed.at > tick.at - PAST_SECONDS), opened)
        opened = None
    opened = tick if opened is None else opened.plus(tick)
    recent = tuple(former for former in history.recent if former.at > tick.at - RECENT_SECONDS)
    return ArrivalHistory(bins, opened, (*recent, tick), past, *_update_burstiness(history))


def _update_burstiness(history: ArrivalHistory) -> tuple[float, float]:
    """Returns the burstiness sums with the two ticks before this one; this one counts later."""
    if len(history.recent) < 2 or not (history.recent[-2].requests and history.recent[-1].requests):
        return history.clumps, history.clumps_of
    before, last = history.recent[-2:]
    keep = math.exp(-last.seconds / CLUMP_SECONDS)
    difference = last.requests - before.requests
    return history.clumps * keep + difference * difference / 2.0, history.clumps_of * keep + last.requests


def keep_last_ticks(history: ArrivalHistory, ticks: int) -> ArrivalHistory:
    """Returns the history as if it began with its last `ticks`."""
    kept = history.recent[-ticks:]
    opened = kept[0]
    for tick in kept[1:]:
        opened = opened.plus(tick)
    return replace(history, bins=(), open=opened, recent=kept)
