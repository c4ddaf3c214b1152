"""The middle of some numbers, without the standard library's module of statistics, which a process would load for this alone."""

from collections.abc import Iterable


def median(values: Iterable[float]) -> float:
    """Of at least one; of an even number the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
