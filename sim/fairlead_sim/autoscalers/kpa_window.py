"""Knative's windows: averages that know where data begins and ends, and the largest recent number.

An average covers the time from the first write of a run of data to the last. After 6 s of a run
that is 6 s, not the window. A gap inside counts as zero. After a whole window without a write there
is no data at all, which is not zero. Values of one second add up.

Source: knative/serving v0.47.0, pkg/autoscaler/aggregation/bucketing.go (TimedFloat64Buckets) and
pkg/autoscaler/aggregation/max/window.go. Apache-2.0. Changed: values of the window are kept, not a
ring; writes come in order.
"""

import math
from dataclasses import dataclass, replace

_DIGITS = 1e6  # averages are rounded to six digits


@dataclass(frozen=True, slots=True)
class WindowAverage:
    """The values of the last ``window_seconds``, by second.

    first, last: the seconds of the first and the last write; None before the first.
    """

    window_seconds: int
    values: tuple[tuple[int, float], ...] = ()
    first: int | None = None
    last: int | None = None

    def plus(self, now: float, value: float) -> "WindowAverage":
        """Returns the window with ``value`` written at ``now``."""
        second = math.floor(now)
        if self.last is None or second - self.last >= self.window_seconds:
            return replace(self, values=((second, value),), first=second, last=second)
        kept = tuple(one for one in self.values if one[0] > second - self.window_seconds)
        return replace(self, values=(*kept, (second, value)), last=second)

    def is_empty(self, now: float) -> bool:
        """Returns whether nothing was written, or the last write is older than the window."""
        return self.last is None or math.floor(now) - self.last > self.window_seconds

    def average_at(self, now: float) -> float:
        """Returns the average; 0 if all values are too old. See ``is_empty``."""
        if self.first is None or self.last is None:
            return 0.0
        second = math.floor(now)
        silent = max(0, second - self.last)
        if silent >= self.window_seconds:
            return 0.0
        total = sum(value for at, value in self.values if at > second - self.window_seconds)
        return _rounded(total / min(self.last - self.first + 1, self.window_seconds - silent))


@dataclass(frozen=True, slots=True)
class WindowMaximum:
    """The values of the last ``length`` ticks of ``tick_seconds``."""

    length: int
    tick_seconds: int
    values: tuple[tuple[int, int], ...] = ()

    def plus(self, now: float, value: int) -> "WindowMaximum":
        """Returns the window with ``value`` at ``now``."""
        tick = math.floor(now) // self.tick_seconds
        kept = tuple(one for one in self.values if tick - one[0] < self.length)
        return replace(self, values=(*kept, (tick, value)))

    def current(self) -> int:
        """Returns the largest value; at least one must have been written."""
        return max(value for _, value in self.values)


def _rounded(value: float) -> float:
    """Returns the value with six digits, halves away from zero, as Go rounds."""
    scaled = value * _DIGITS
    whole = math.floor(scaled)
    return (whole + 1 if scaled - whole >= 0.5 else whole) / _DIGITS
