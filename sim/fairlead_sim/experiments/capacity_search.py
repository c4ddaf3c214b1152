"""The capacity of a fleet: the highest arrival rate at which first tokens meet a goal.

Requests stay the same; their arrivals are scaled, with the pauses of sessions. A run that must miss
its goal ends early, and most runs of a search clearly meet or miss it.
"""

import math
from collections.abc import Callable, Sequence

from fairlead_sim.fleet.request import InflightRequest
from fairlead_sim.fleet.results import WARMUP_SHARE, CapacityGoal
from fairlead_sim.workload.traces import TraceRequest

TOLERANCE = 0.015
"""The relative precision of a capacity."""
_SEARCH_FACTOR = 1.25
_MAX_DISTANCE_FACTOR = 40.0
"""A capacity further than this factor from the guess counts as none."""


class GoalMissed(Exception):
    """Raised in a run that cannot meet its goal any more."""


class GoalWatch:
    """The observer that ends a run with too many late first tokens. Warm-up requests do not
    count.
    """

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
        """Counts a late first token, or an error before the first token.

        Raises GoalMissed if there are too many for the goal.
        """
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
    """Returns the highest rate found that meets the goal, to within ``tolerance``.

    The search ends at a factor of about 40 from ``guess``: 0 if no rate down to there meets it.

    The result is a border: by chance a higher rate may meet the goal where a lower one does not.
    """
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
