"""From counters to what they rose by, gateway by gateway.

A counter that is lower than before was reset: its process started again, and what it shows is what happened since. What is no number,
or negative, is left out. A counter that was not there before began at zero where its source is known to show all it has
(``began``), and otherwise is only a point to start from.

A gateway that does not answer counts on: its requests are still there. For a while it is taken to go on as it did; what it counted
meanwhile is spread over the ticks that were missed once it answers again, so that no burst is seen where there was none. After
``Limits.autoscaler_carry_seconds`` nothing is assumed of it any more: whoever sends requests has long gone to the others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

CounterKey: TypeAlias = tuple[str, ...]


def counter_increases(
    before: Mapping[CounterKey, float], now: Mapping[CounterKey, float], *, starts_at_zero: bool
) -> dict[CounterKey, float]:
    """By how much each counter rose."""
    found: dict[CounterKey, float] = {}
    for key, value in now.items():
        if not _is_count(value):
            continue
        last = before.get(key)
        if last is None:
            if starts_at_zero:
                found[key] = value
        else:
            found[key] = value - last if value >= last else value
    return found


def _is_count(value: float) -> bool:
    return math.isfinite(value) and value >= 0.0


@dataclass(frozen=True, slots=True)
class CounterTracker:
    """The counters of one source: as they were when it last answered (``read_at``), and what they then rose by a second."""

    counters: Mapping[CounterKey, float]
    read_at: float
    checked_at: float
    rates: Mapping[CounterKey, float] = field(default_factory=dict)


def start_tracking(counters: Mapping[CounterKey, float], now: float) -> CounterTracker:
    """A source that is seen for the first time."""
    return CounterTracker(dict(counters), now, now)


def advance(
    tracker: CounterTracker, counters: Mapping[CounterKey, float], now: float, *, starts_at_zero: bool
) -> tuple[CounterTracker, dict[CounterKey, float]]:
    """The source answered. Of a time in which it did not, only the share since the last look is told: the rest was assumed then."""
    rises = counter_increases(tracker.counters, counters, starts_at_zero=starts_at_zero)
    span, since = now - tracker.read_at, now - tracker.checked_at
    if span <= 0.0:
        return replace(tracker, checked_at=now), {}
    rates = {key: rise / span for key, rise in rises.items()}
    told = rises if span <= since else {key: rate * since for key, rate in rates.items()}
    kept = {key: value for key, value in counters.items() if _is_count(value)}
    return CounterTracker(kept, now, now, rates), told


def extrapolate(
    tracker: CounterTracker, now: float, max_seconds: float
) -> tuple[CounterTracker, dict[CounterKey, float] | None]:
    """The source did not answer: what it may have counted since the last look; None when it is silent for too long to say."""
    since = now - tracker.checked_at
    looked = replace(tracker, checked_at=now)
    if now - tracker.read_at > max_seconds or not tracker.rates:
        return looked, None
    return looked, {key: rate * since for key, rate in tracker.rates.items()}
