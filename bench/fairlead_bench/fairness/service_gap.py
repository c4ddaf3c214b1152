"""The service of two tenants while both waited, in tokens: uncached input + 2 · output.

Source: VTC (arXiv 2401.00588), whose bound is on the difference of service over any window in which
two tenants wait all the time.
"""

from collections.abc import Mapping, Sequence
from typing import Final

OUTPUT_WEIGHT: Final = 2.0


def waiting_windows(waits: Sequence[tuple[float, str, int]], tenants: Sequence[str]) -> list[tuple[float, float]]:
    """Returns the windows in which each of the tenants has a request in some queue."""
    waiting = dict.fromkeys(tenants, 0)
    windows: list[tuple[float, float]] = []
    began: float | None = None
    for at, tenant, change in waits:
        if tenant in waiting:
            waiting[tenant] += change
        if all(waiting.values()):
            began = at if began is None else began
        elif began is not None:
            windows.append((began, at))
            began = None
    return windows


def largest_gap(
    served: Sequence[tuple[float, str, float]],
    windows: Sequence[tuple[float, float]],
    weights: Mapping[str, float],
) -> float:
    """Returns the largest difference of service, divided by weight, over any part of a window.

    served: time, tenant and tokens, in order of time.
    weights: of the two tenants.
    """
    first = next(iter(weights))
    largest = 0.0
    for begin, end in windows:
        balance = low = high = 0.0
        for at, tenant, tokens in served:
            if at < begin or at > end or tenant not in weights:
                continue
            balance += tokens / weights[tenant] * (1 if tenant == first else -1)
            largest = max(largest, balance - low, high - balance)
            low, high = min(low, balance), max(high, balance)
    return largest
