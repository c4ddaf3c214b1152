"""Indicators of an outcome beyond its share and cost: recovery after a step, windows without
metrics, wake-up of a pool. Pure; seconds count from the scenario's start.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

from fairlead_sim.autoscaling.closed_loop import ControllerOutcome
from fairlead_sim.autoscaling.plant import AutoscalingScenario

AFTER_SECONDS = 300.0
AGAIN_SHARE = 0.95
AGAIN_SECONDS = 60.0
QUIET_SECONDS = 400.0
_GRAIN = 5.0


def indicators(scenario: AutoscalingScenario, outcome: ControllerOutcome) -> dict[str, float]:
    """Returns the figures of a cell."""
    found = {
        "requests": float(outcome.requests),
        "attainment": outcome.attainment,
        "cost": outcome.cost,
        "changes": outcome.changes_per_hour,
        "turns": outcome.reversals_per_hour,
        "abandoned": float(outcome.abandoned),
        "lost": float(outcome.lost),
    }
    windows = (*scenario.faults.missing, *scenario.faults.zeroed)
    if windows:
        found |= in_windows(outcome, windows)
    if scenario.name.startswith("step"):
        found["again_seconds"] = recovery_seconds(scenario, outcome)
    if scenario.name.startswith("zero"):
        found["wake_seconds"] = wake_seconds(outcome)
    return found


def in_windows(outcome: ControllerOutcome, windows: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Returns the worst share inside a window and the largest number of replicas removed in one.

    Both are over all windows, each with ``AFTER_SECONDS`` behind it. A replica is removed when
    fewer are desired than just before the window.
    """
    shares, away = [], 0
    for begin, end in windows:
        share = outcome.attainment_between(begin, end + AFTER_SECONDS)
        shares.append(1.0 if share is None else share)
        before = [look.desired for look in outcome.samples if look.now < begin][-1]
        for look in outcome.samples:
            if begin <= look.now < end + AFTER_SECONDS:
                away = max(away, *[was - now for was, now in zip(before, look.desired, strict=True)])
    return {"window_attainment": min(shares), "window_away": float(away)}


def rising_steps(scenario: AutoscalingScenario) -> float:
    """Returns the minutes that bring the largest rise of the load."""
    counts: dict[int, int] = {}
    for arrival in scenario.load.arrivals:
        counts[int(arrival / 60.0)] = counts.get(int(arrival / 60.0), 0) + 1
    last = int(scenario.seconds / 60.0)
    return 60.0 * max(range(1, last), key=lambda minute: counts.get(minute, 0) - counts.get(minute - 1, 0))


def recovery_seconds(scenario: AutoscalingScenario, outcome: ControllerOutcome) -> float:
    """Returns the seconds until a minute's requests are again within the SLO to ``AGAIN_SHARE``.

    They count from the first moment at which a replica ordered at the step can be ready.
    The result is 0 if the share never falls below that afterwards.
    """
    first = rising_steps(scenario) + min(setup.startup.min_seconds for setup in scenario.pools)
    at = first
    while at + AGAIN_SECONDS <= scenario.seconds:
        share = outcome.attainment_between(at, at + AGAIN_SECONDS)
        if share is None or share >= AGAIN_SHARE:
            return at - first
        at += _GRAIN
    return math.inf


def wake_seconds(outcome: ControllerOutcome) -> float:
    """Returns by how much the first requests after silence waited longer for their first token than
    a start takes. The maximum counts; infinite where one never had a token. Beyond the start are
    the time until the first replica is ordered and the time after the first is ready. Which of
    several ordered replicas is ready first belongs to the start. Requests that found a ready
    replica do not count."""
    book = outcome.request_table
    readies = sorted([ready for pool in outcome.starts.values() for _, ready in pool])
    orders = [look.now for look in outcome.samples if any(look.desired)]
    longest, last = 0.0, -math.inf
    for arrival, first in zip(book.arrival, book.first, strict=True):
        silent = arrival - last >= QUIET_SECONDS
        last = arrival
        if silent and first < 0.0:
            return math.inf
        if silent:
            ordered, ready = _first(orders, arrival, first), _first(readies, arrival, first)
            start = 0.0 if ordered is None or ready is None else max(0.0, ready - ordered)
            longest = max(longest, first - arrival - start)
    return longest


def _first(moments: Sequence[float], begin: float, end: float) -> float | None:
    """Returns the first of the rising ``moments`` in [begin, end]."""
    at = bisect_left(moments, begin)
    return moments[at] if at < len(moments) and moments[at] <= end else None
