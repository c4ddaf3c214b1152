"""How much a fleet can carry: the highest rate of arrivals at which first tokens still come in time.

The requests stay the same and their arrivals are scaled, pauses within sessions too. A run that is going to miss the bar is ended as
soon as that is certain, which is early: most of the runs that a search needs are of one or the other clear kind.
"""

import math
from collections.abc import Callable, Sequence

from fairlead_sim.fleet.request import InflightRequest
from fairlead_sim.fleet.results import WARMUP_SHARE, CapacityGoal
from fairlead_sim.workload.traces import TraceRequest

TOLERANCE = 0.015
"""How closely a capacity is found."""
_SEARCH_FACTOR = 1.25
_MAX_DISTANCE_FACTOR = 40.0
"""A capacity further than this factor from the guess is none."""


class GoalMissed(Exception):
    """Raised out of a run whose bar cannot be kept any more."""


class GoalWatch:
    """Watches a course and ends it when too many first tokens were late. Requests that warm the caches do not count."""

    def __init__(self, goal: CapacityGoal, requests: Sequence[TraceRequest]) -> None:
        arrivals = sorted([request.arrival for request in requests])
        warmup_requests = int(WARMUP_SHARE * len(arrivals))
        self._counted_from = arrivals[warmup_requests] if arrivals else 0.0
        counted_requests = len(arrivals) - warmup_requests
        self._goal = goal
        self._max_late = math.floor(counted_requests * (1.0 - goal.share) + 1e-9)
        self._max_starved = math.floor(counted_requests * (1.0 - goal.guard_share) + 1e-9)
        self._late = self._starved = 0

    def __call__(self, inflight: InflightRequest, now: float) -> None:
        """Raises Missed."""
        arrival = inflight.request.arrival
        if arrival < self._counted_from or (inflight.error is not None and inflight.first_token_at is not None):
            return
        waited = now - arrival if inflight.error is None else math.inf
        if waited > self._goal.seconds:
            self._late += 1
            if waited > self._goal.guard_seconds:
                self._starved += 1
            if self._late > self._max_late or self._starved > self._max_starved:
                raise GoalMissed


def search_capacity(meets_goal: Callable[[float], bool], guess: float, *, tolerance: float = TOLERANCE) -> float:
    """The highest rate that is ``kept``, to within ``tolerance``, from a ``guess`` on; 0 where none near it is. More load may by
    chance be kept where less is not: then it is one of the borders."""
    low = high = guess
    if meets_goal(guess):
        while meets_goal(high := high * _SEARCH_FACTOR):
            low = high
            if high > guess * _MAX_DISTANCE_FACTOR:
                return low
    else:
        while not meets_goal(low := low / _SEARCH_FACTOR):
            high = low
            if low < guess / _MAX_DISTANCE_FACTOR:
                return 0.0
    while high / low > 1.0 + tolerance:
        middle = math.sqrt(low * high)
        if meets_goal(middle):
            low = middle
        else:
            high = middle
    return low
