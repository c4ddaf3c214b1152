"""Histograms as integer lists over fixed, log-spaced bounds: one bisection and one addition per
value.

Seconds have four buckets per doubling, so a quantile is within about 10 %; one per doubling is
exported. Bounds are the same for every metric and release, so histograms of all gateways add up.
"""

from collections.abc import Sequence
from typing import Final

FINE_PER_DOUBLING: Final = 4
SECONDS_BOUNDS: Final[tuple[float, ...]] = tuple(
    0.00025 * 2.0 ** (step / FINE_PER_DOUBLING) for step in range(22 * FINE_PER_DOUBLING + 1)
)
"""Upper bounds from 0.25 ms to 1,049 s; one more bucket is for longer times."""

TOKEN_BOUNDS: Final[tuple[float, ...]] = tuple(float(4**power) for power in range(14))
"""Upper bounds from 1 to 67,108,864 tokens, as OpenTelemetry suggests."""

OVERHEAD_BOUNDS: Final[tuple[float, ...]] = tuple(0.00001 * 2.0**step for step in range(18))
"""Upper bounds from 10 µs to 1.3 s, one per doubling, for the gateway's own time."""


def bucket_index(bounds: tuple[float, ...], value: float) -> int:
    """Returns the position of the first bound that is not below `value`, as `bisect_left`.

    Why: compiled, it compares bare numbers, where the library compares objects.
    """
    low, high = 0, len(bounds)
    while low < high:
        middle = (low + high) // 2
        if bounds[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


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
