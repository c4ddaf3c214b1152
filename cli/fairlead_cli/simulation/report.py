"""What a simulation found, on a terminal and as JSON."""

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
"""In two lines, so that the table with a search for capacity fits a terminal of 80 columns too."""


def print_results(options: SimulationOptions, results: Sequence[PresetResult], console: Console) -> None:
    """One line a preset, and what the columns are."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    columns = (*COLUMNS, "carries\nper s") if options.capacity else COLUMNS
    for column in columns:
        table.add_column(column, justify="left" if column == "preset" else "right", no_wrap=True)
    for one in results:
        table.add_row(*_cells(one, capacity=options.capacity))
    console.print(table)
    met = f"met: first tokens within {format_duration(options.objective)}"
    told = f"  {met}; σ/µ: spread of computed tokens over engines; put back: requests that an engine preempted"
    console.print(told, highlight=False, soft_wrap=True)
    if options.capacity and not all(one.capacity for one in results):
        console.print("  carries –: no rate near the one asked for was within bounds", highlight=False, soft_wrap=True)
    failed = {one.preset: one.figures.errors for one in results if one.figures.errors}
    for name, errors in failed.items():
        console.print(f"  [bold red]{name}: {errors} requests failed[/]", highlight=False)


def write_json(options: SimulationOptions, results: Sequence[PresetResult], file: Path) -> None:
    """``{"traffic", "requests", "rate", "engines", "profile", "objective_seconds", "seed", "presets": {NAME: figures}}``."""
    told = {
        "traffic": options.source.name,
        "requests": len(options.source.requests),
        "rate": options.rate,
        "engines": options.engines,
        "profile": options.profile.name,
        "objective_seconds": options.objective,
        "seed": options.seed,
        "presets": {one.preset: asdict(one.figures) | {"capacity": one.capacity} for one in results},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _cells(one: PresetResult, *, capacity: bool) -> list[str]:
    found = one.figures
    times = (found.ttft_p50, found.ttft_p90, found.ttft_p99, found.tpot_p99)
    cells = [
        one.preset,
        f"{found.attainment:.1%}",
        *["–" if seconds is None else format_duration(seconds) for seconds in times],
        f"{found.cached_token_share:.1%}",
        "–" if found.load_spread is None else f"{found.load_spread:.2f}",
        f"{found.preempted_share:.1%}",
    ]
    if capacity:
        cells.append("–" if not one.capacity else f"{one.capacity:.1f}")
    return cells
