"""Histograms as integer lists over fixed, log-spaced bounds: one search and one addition per value.

Seconds have four buckets per doubling, so a quantile is within about 10 %; one per doubling is
exported. Bounds are the same for every metric and release, so histograms of all gateways add up.
"""

from collections.abc import Sequence
from typing import Final

FINE_PER_DOUBLING: Final = 4
_MIN_SECONDS: Final = 0.00025
_SECONDS_DOUBLINGS: Final = 22
SECONDS_BOUNDS: Final[tuple[float, ...]] = tuple(
    _MIN_SECONDS * 2.0 ** (step / FINE_PER_DOUBLING) for step in range(_SECONDS_DOUBLINGS * FINE_PER_DOUBLING + 1)
)
"""Upper bounds from 0.25 ms to 1,049 s; one more bucket is for longer times."""

_TOKEN_BOUNDS: Final = 14
TOKEN_BOUNDS: Final[tuple[float, ...]] = tuple(float(4**power) for power in range(_TOKEN_BOUNDS))
"""Upper bounds from 1 to 67,108,864 tokens, as OpenTelemetry suggests."""

_MIN_OVERHEAD: Final = 0.00001
_OVERHEAD_BOUNDS: Final = 18
OVERHEAD_BOUNDS: Final[tuple[float, ...]] = tuple(_MIN_OVERHEAD * 2.0**step for step in range(_OVERHEAD_BOUNDS))
"""Upper bounds from 10 µs to 1.3 s, one per doubling, for the gateway's own time."""


def seconds_bucket(seconds: float) -> int:
    """Returns the position of the first of `SECONDS_BOUNDS` that is not below a value.

    The result is that of `bisect_left`, here and in the next two functions.

    Why: compiled, a number is doubled in a few instructions. A comparison with an item of a tuple
    takes 50.
    """
    doublings, bound = 0, _MIN_SECONDS
    while bound < seconds and doublings < _SECONDS_DOUBLINGS:
        doublings += 1
        bound += bound
    first = (doublings - 1) * FINE_PER_DOUBLING + 1 if doublings else 0
    last = doublings * FINE_PER_DOUBLING
    while first <= last and SECONDS_BOUNDS[first] < seconds:
        first += 1
    return first


def token_bucket(tokens: float) -> int:
    """Returns the position of a value in `TOKEN_BOUNDS`, as `seconds_bucket`."""
    position, bound = 0, 1.0
    while bound < tokens and position < _TOKEN_BOUNDS:
        position += 1
        bound *= 4.0
    return position


def overhead_bucket(seconds: float) -> int:
    """Returns the position of a value in `OVERHEAD_BOUNDS`, as `seconds_bucket`."""
    position, bound = 0, _MIN_OVERHEAD
    while bound < seconds and position < _OVERHEAD_BOUNDS:
        position += 1
        bound += bound
    return position


def quantile(counts: Sequence[int], share: float, bounds: Sequence[float] = SECONDS_BOUNDS) -> float | None:
    """Returns the value below which `share` of the observations lie, interpolated; None without
    any.
    """
    total = sum(counts)
    if total == 0:
        return None
    wanted = share * total
    seen = 0
    for index, count in enumerate(counts):
        if count and seen + count >= wanted:
            if index >= len(bounds):
                return bounds[-1]
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * max(0.0, wanted - seen) / count
        seen += count
    return bounds[-1]
