"""Histograms as plain integer lists over fixed, log-spaced bounds: one bisect and one addition per observation.

Seconds are kept at four buckets per doubling (a quantile read from them is within about 10 %) and exported at one per
doubling; bounds are the same for every metric and release, so that histograms of all gateways can be added up.
"""

from collections.abc import Sequence
from typing import Final

FINE_PER_DOUBLING: Final = 4
SECONDS_BOUNDS: Final[tuple[float, ...]] = tuple(
    0.00025 * 2.0 ** (step / FINE_PER_DOUBLING) for step in range(22 * FINE_PER_DOUBLING + 1)
)
"""Upper bounds from 0.25 ms to 1,049 s; one more bucket holds what is longer."""

TOKEN_BOUNDS: Final[tuple[float, ...]] = tuple(float(4**power) for power in range(14))
"""Upper bounds from 1 to 67,108,864 tokens, the ones OpenTelemetry suggests."""

OVERHEAD_BOUNDS: Final[tuple[float, ...]] = tuple(0.00001 * 2.0**step for step in range(18))
"""Upper bounds from 10 µs to 1.3 s, one per doubling: what the gateway itself takes is far below the bounds of engines."""


def bucket_index(bounds: tuple[float, ...], value: float) -> int:
    """The position of the first bound that is not below ``value``; behind the last one where all are (as ``bisect_left``).

    Written out because it is compiled: five observations a request on bare numbers, where the library's compares objects."""
    low, high = 0, len(bounds)
    while low < high:
        middle = (low + high) // 2
        if bounds[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


def quantile(counts: Sequence[int], share: float, bounds: Sequence[float] = SECONDS_BOUNDS) -> float | None:
    """The value that ``share`` of the observations stayed below, interpolated in its bucket; None without any."""
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
