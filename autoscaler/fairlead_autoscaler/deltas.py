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

Key: TypeAlias = tuple[str, ...]


def risen(before: Mapping[Key, float], now: Mapping[Key, float], *, began: bool) -> dict[Key, float]:
    """By how much each counter rose."""
    found: dict[Key, float] = {}
    for key, value in now.items():
        if not _counts(value):
            continue
        last = before.get(key)
        if last is None:
            if began:
                found[key] = value
        else:
            found[key] = value - last if value >= last else value
    return found


def _counts(value: float) -> bool:
    return math.isfinite(value) and value >= 0.0


@dataclass(frozen=True, slots=True)
class Tally:
    """The counters of one source: as they were when it last answered (``read_at``), and what they then rose by a second."""

    counters: Mapping[Key, float]
    read_at: float
    looked_at: float
    rates: Mapping[Key, float] = field(default_factory=dict)


def begun(counters: Mapping[Key, float], now: float) -> Tally:
    """A source that is seen for the first time."""
    return Tally(dict(counters), now, now)


def advanced(tally: Tally, counters: Mapping[Key, float], now: float, *, began: bool) -> tuple[Tally, dict[Key, float]]:
    """The source answered. Of a time in which it did not, only the share since the last look is told: the rest was assumed then."""
    rises = risen(tally.counters, counters, began=began)
    span, since = now - tally.read_at, now - tally.looked_at
    if span <= 0.0:
        return replace(tally, looked_at=now), {}
    rates = {key: rise / span for key, rise in rises.items()}
    told = rises if span <= since else {key: rate * since for key, rate in rates.items()}
    kept = {key: value for key, value in counters.items() if _counts(value)}
    return Tally(kept, now, now, rates), told


def carried(tally: Tally, now: float, most_seconds: float) -> tuple[Tally, dict[Key, float] | None]:
    """The source did not answer: what it may have counted since the last look; None when it is silent for too long to say."""
    since = now - tally.looked_at
    looked = replace(tally, looked_at=now)
    if now - tally.read_at > most_seconds or not tally.rates:
        return looked, None
    return looked, {key: rate * since for key, rate in tally.rates.items()}
