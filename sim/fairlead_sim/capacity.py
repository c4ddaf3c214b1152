"""How much a fleet can carry: the highest rate of arrivals at which first tokens still come in time.

The requests stay the same and their arrivals are scaled, pauses within sessions too. A run that is going to miss the bar is ended as
soon as that is certain, which is early: most of the runs that a search needs are of one or the other clear kind.
"""

import math
from collections.abc import Callable, Sequence

from fairlead_sim.figures import WARMING, Bar
from fairlead_sim.served import Flight
from fairlead_sim.traces import TraceRequest

TOLERANCE = 0.015
"""How closely a capacity is found."""
_FAR = 1.25
_SPAN = 40.0
"""A capacity further than this factor from the guess is none."""


class Missed(Exception):
    """Raised out of a run whose bar cannot be kept any more."""


class Judge:
    """Watches a course and ends it when too many first tokens were late. Requests that warm the caches do not count."""

    def __init__(self, bar: Bar, requests: Sequence[TraceRequest]) -> None:
        arrivals = sorted([request.arrival for request in requests])
        warming = int(WARMING * len(arrivals))
        self._from = arrivals[warming] if arrivals else 0.0
        counting = len(arrivals) - warming
        self._bar = bar
        self._late_most = math.floor(counting * (1.0 - bar.share) + 1e-9)
        self._starved_most = math.floor(counting * (1.0 - bar.guard_share) + 1e-9)
        self._late = self._starved = 0

    def __call__(self, flight: Flight, now: float) -> None:
        """Raises Missed."""
        arrival = flight.request.arrival
        if arrival < self._from or (flight.error is not None and flight.first is not None):
            return
        waited = now - arrival if flight.error is None else math.inf
        if waited > self._bar.seconds:
            self._late += 1
            if waited > self._bar.guard_seconds:
                self._starved += 1
            if self._late > self._late_most or self._starved > self._starved_most:
                raise Missed


def capacity(kept: Callable[[float], bool], guess: float, *, tolerance: float = TOLERANCE) -> float:
    """The highest rate that is ``kept``, to within ``tolerance``, from a ``guess`` on; 0 where none near it is. More load may by
    chance be kept where less is not: then it is one of the borders."""
    low = high = guess
    if kept(guess):
        while kept(high := high * _FAR):
            low = high
            if high > guess * _SPAN:
                return low
    else:
        while not kept(low := low / _FAR):
            high = low
            if low < guess / _SPAN:
                return 0.0
    while high / low > 1.0 + tolerance:
        middle = math.sqrt(low * high)
        if kept(middle):
            low = middle
        else:
            high = middle
    return low
