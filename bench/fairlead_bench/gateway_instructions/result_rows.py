"""Counts of both states as rows with goals."""

import statistics
from collections.abc import Mapping, Sequence

from fairlead_bench.results import ResultRow, load_goals, ratio_row

DECISION = "routing decision"
Windows = Mapping[str, Sequence[float]]
"""Unit → instructions of one such unit, in each window."""


def rows(new: Windows, base: Windows, revision: str) -> list[ResultRow]:
    """Returns a row per unit: means of the windows, and the new one ÷ the base."""
    wanted = load_goals("gateway-instructions")
    return [
        ratio_row(
            metric := f"instructions per {unit}",
            "instructions",
            statistics.fmean(counts),
            revision,
            statistics.fmean(base[unit]) if unit in base else None,
            wanted.get(metric),
        )
        for unit, counts in new.items()
    ]


def standard_errors(new: Windows, base: Windows) -> dict[str, float]:
    """Returns unit → standard error of new ÷ base, from the quotients window by window.

    Why: equal windows do equal work, so quotients vary less than counts.
    """
    found = {}
    for unit, counts in new.items():
        quotients = [one / other for one, other in zip(counts, base.get(unit, ()), strict=False)]
        found[unit] = statistics.stdev(quotients) / len(quotients) ** 0.5 if len(quotients) > 1 else 0.0
    return found
