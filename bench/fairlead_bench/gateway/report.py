"""The result's file and its printed form. The file also holds all runs and the peers that were
missing."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from fairlead_bench.gateway.measurement import CaseRun
from fairlead_bench.gateway.result_rows import SEPARATOR
from fairlead_bench.results import ResultRow, machine, print_rows, versions


@dataclass(frozen=True, slots=True)
class RunConditions:
    """The conditions of a benchmark run.

    peers: their versions.
    absent: targets that did not run, with the reasons.
    """

    seed: int
    settings: Mapping[str, Any]
    peers: Mapping[str, str]
    absent: Mapping[str, str]


def write(
    file: Path,
    rows: Sequence[ResultRow],
    runs: Sequence[CaseRun],
    conditions: RunConditions,
) -> None:
    """Writes the JSON file."""
    content = {
        "machine": machine() | {"model": _processor()},
        "versions": versions() | dict(conditions.peers),
        "seed": conditions.seed,
        "settings": dict(conditions.settings),
        "rows": [asdict(row) for row in rows],
        "absent": dict(conditions.absent),
        "problems": problems(runs),
        "runs": [asdict(run) for run in runs],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def problems(runs: Iterable[CaseRun]) -> list[str]:
    """Returns the runs whose figures were not used, with the reasons."""
    return [f"{run.case} on {run.target}, round {run.round}: {what}" for run in runs for what in run.problems]


def print_report(
    rows: Sequence[ResultRow], runs: Sequence[CaseRun], absent: Mapping[str, str], console: Console
) -> None:
    """Goals, all figures side by side, what is missing and why."""
    print_rows("goals", [row for row in rows if row.goal is not None], console)
    console.print(side_by_side(rows))
    for name, why in absent.items():
        console.print(f"absent: {name}: {why}", style="bold red", highlight=False, markup=False)
    for what in problems(runs):
        console.print(f"not used: {what}", style="red", highlight=False, markup=False)


def side_by_side(rows: Iterable[ResultRow]) -> RichTable:
    """Returns a table: a line per figure, a column per target.

    It has all rows without a goal.
    """
    figures: dict[str, dict[str, str]] = {}
    targets: dict[str, None] = {}
    for row in rows:
        if row.goal is None:
            what, _, target = row.metric.rpartition(SEPARATOR)
            targets[target] = None
            figures.setdefault(f"{what}, {row.unit}", {})[target] = "–" if row.value is None else f"{row.value:.3g}"
    table = RichTable(title="every target", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for target in targets:
        table.add_column(target, justify="right")
    for what, cells in figures.items():
        table.add_row(what, *(cells.get(target, "") for target in targets))
    return table


def _processor() -> str | None:
    """Returns the kind of processor, since µs mean little without it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
