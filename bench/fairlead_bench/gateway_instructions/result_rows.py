"""Counts of both states as rows with goals."""

import statistics
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from fairlead_bench.gateway_instructions.cost_parts import EVENT_LOOP, METRICS, OTHER, PARTS
from fairlead_bench.gateway_instructions.scenarios import PLAIN, WAITING
from fairlead_bench.results import ResultRow, load_goals, ratio_row, value_row

DECISION = "routing decision"
Windows = Mapping[str, Sequence[float]]
"""Unit → cost of one such unit, in each window."""


def rows(new: Mapping[str, Windows], base: Mapping[str, Windows], revision: str) -> list[ResultRow]:
    """Returns a row per metric and unit: means of the windows, and the new one ÷ the base.

    new, base: windows by metric.
    """
    wanted = load_goals("gateway-instructions")
    found = []
    for metric in METRICS:
        for unit, counts in new.get(metric, {}).items():
            before = base.get(metric, {}).get(unit)
            name = f"{metric} per {unit}"
            versus = None if before is None else statistics.fmean(before)
            value = statistics.fmean(counts)
            found.append(ratio_row(name, "", value, revision, versus, wanted.get(name)))
    instructions = new["instructions"]
    if PLAIN in instructions and WAITING in instructions:
        ratio = statistics.fmean(instructions[WAITING]) / statistics.fmean(instructions[PLAIN])
        name = f"instructions of a {WAITING} ÷ {PLAIN}"
        found.append(value_row(name, "", ratio, wanted.get(name)))
    return found


def print_parts(new: Mapping[str, Mapping[str, float]], base: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the instructions of each part by unit, those of the base in brackets."""
    units = list(new)
    table = Table(title="instructions by part (base)", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part")
    for unit in units:
        table.add_column(unit, justify="right")
    for part in (*PARTS, OTHER, EVENT_LOOP):
        cells = [f"{new[unit].get(part, 0):,.0f} ({base.get(unit, {}).get(part, 0):,.0f})" for unit in units]
        table.add_row(part, *cells)
    Console().print(table)


def standard_errors(new: Windows, base: Windows) -> dict[str, float]:
    """Returns unit → standard error of new ÷ base, from the quotients window by window.

    Why: equal windows do equal work, so quotients vary less than counts.
    """
    found = {}
    for unit, counts in new.items():
        quotients = [one / other for one, other in zip(counts, base.get(unit, ()), strict=False)]
        found[unit] = statistics.stdev(quotients) / len(quotients) ** 0.5 if len(quotients) > 1 else 0.0
    return found
