"""Counter deltas: the increases of each gateway's counters since the last tick.

A counter that is lower than before was reset: its process started again, and it shows what happened
since. Values that are no number, or negative, are dropped. So are increases that no gateway can
count between two ticks: one gateway must not hide what the others count.

A counter that is new began at zero if its source is known to show all of its counters. Otherwise it
is only a point to start from.

A gateway that does not answer still has its requests. For a while its counters are taken to rise as
they did. When it answers again, what it counted is spread over the missed ticks, so no false burst
appears. Nothing is assumed any more after `AUTOSCALER_CARRY_FORWARD_SECONDS`: by then the
clients use other gateways.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

CounterKey: TypeAlias = tuple[str, ...]
MAX_INCREASE: Final = 1e9
"""The most that one gateway can count from one tick to the next: 200 million tokens a second."""


def counter_increases(
    before: Mapping[CounterKey, float], now: Mapping[CounterKey, float], *, starts_at_zero: bool
) -> dict[CounterKey, float]:
    """Returns the increase of each counter.

    starts_at_zero: a counter that is new began at zero.
    """
    increases: dict[CounterKey, float] = {}
    for key, value in now.items():
        if not _is_count(value):
            continue
        last = before.get(key)
        if last is None:
            if starts_at_zero:
                increases[key] = value
        else:
            increases[key] = value - last if value >= last else value
    return increases


def _is_count(value: float) -> bool:
    return math.isfinite(value) and value >= 0.0


@dataclass(frozen=True, slots=True)
class CounterTracker:
    """The counters of one source when it last answered, and their increase per second then.

    checked_at: the last tick, answered or not.
    """

    counters: Mapping[CounterKey, float]
    read_at: float
    checked_at: float
    rates: Mapping[CounterKey, float] = field(default_factory=dict)


def start_tracking(counters: Mapping[CounterKey, float], now: float) -> CounterTracker:
    return CounterTracker(dict(counters), now, now)


def advance(
    tracker: CounterTracker, counters: Mapping[CounterKey, float], now: float, *, starts_at_zero: bool
) -> tuple[CounterTracker, dict[CounterKey, float]]:
    """Returns the next tracker, and the increases, after the source answered.

    After missed ticks, only the share since the last tick is returned: the rest was assumed
    already.
    """
    increases = counter_increases(tracker.counters, counters, starts_at_zero=starts_at_zero)
    span, since = now - tracker.read_at, now - tracker.checked_at
    if span <= 0.0:
        return replace(tracker, checked_at=now), {}
    share = min(1.0, since / span)
    returned = {key: increase * share for key, increase in increases.items() if increase * share <= MAX_INCREASE}
    rates = {key: increases[key] / span for key in returned}
    valid = {key: value for key, value in counters.items() if _is_count(value)}
    return CounterTracker(valid, now, now, rates), returned


def extrapolate(
    tracker: CounterTracker, now: float, max_seconds: float
) -> tuple[CounterTracker, dict[CounterKey, float] | None]:
    """Returns the next tracker, and the assumed increases, if the source did not answer.

    The increases are None if no rates are known, or after more than `max_seconds` without an
    answer.
    """
    since = now - tracker.checked_at
    checked = replace(tracker, checked_at=now)
    if now - tracker.read_at > max_seconds or not tracker.rates:
        return checked, None
    return checked, {key: rate * since for key, rate in tracker.rates.items()}
