"""Results of a simulation: a table for a terminal, and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fairlead.units import format_duration
from fairlead_cli.simulation.comparison import PresetResult
from fairlead_cli.simulation.options import SimulationOptions

COLUMNS = ("preset", "met", "TTFT\np50", "\np90", "\np99", "TPOT\np99", "cached", "σ/µ", "put\nback")
"""Headings in two lines, so that the table with capacities fits a terminal of 80 columns."""


def print_results(options: SimulationOptions, results: Sequence[PresetResult], console: Console) -> None:
    """Prints a row for each preset, a legend, and the number of failed requests if any failed."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    columns = (*COLUMNS, "carries\nper s") if options.capacity else COLUMNS
    for column in columns:
        table.add_column(column, justify="left" if column == "preset" else "right", no_wrap=True)
    for result in results:
        table.add_row(*_cells(result, capacity=options.capacity))
    console.print(table)
    met = f"met: first tokens within {format_duration(options.objective)}"
    legend = f"  {met}; σ/µ: spread of computed tokens over engines; put back: requests that an engine preempted"
    console.print(legend, highlight=False, soft_wrap=True)
    if options.capacity and not all(result.capacity for result in results):
        console.print("  carries –: no rate near the requested one was within bounds", highlight=False, soft_wrap=True)
    failed = {result.preset: result.figures.errors for result in results if result.figures.errors}
    for name, errors in failed.items():
        console.print(f"  [bold red]{name}: {errors} requests failed[/]", highlight=False)


def write_json(options: SimulationOptions, results: Sequence[PresetResult], file: Path) -> None:
    """Writes ``{"traffic", "requests", "rate", "engines", "profile", "objective_seconds", "seed",
    "presets": {NAME: figures}}``.
    """
    report = {
        "traffic": options.source.name,
        "requests": len(options.source.requests),
        "rate": options.rate,
        "engines": options.engines,
        "profile": options.profile.name,
        "objective_seconds": options.objective,
        "seed": options.seed,
        "presets": {result.preset: asdict(result.figures) | {"capacity": result.capacity} for result in results},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _cells(result: PresetResult, *, capacity: bool) -> list[str]:
    figures = result.figures
    times = (figures.ttft_p50, figures.ttft_p90, figures.ttft_p99, figures.tpot_p99)
    cells = [
        result.preset,
        f"{figures.attainment:.1%}",
        *["–" if seconds is None else format_duration(seconds) for seconds in times],
        f"{figures.cached_token_share:.1%}",
        "–" if figures.load_spread is None else f"{figures.load_spread:.2f}",
        f"{figures.preempted_share:.1%}",
    ]
    if capacity:
        cells.append("–" if not result.capacity else f"{result.capacity:.1f}")
    return cells
