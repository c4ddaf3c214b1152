"""Result rows with goals, the JSON file that other tools read, and the printed table."""

import json
import operator
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from fairlead.manifests.yaml_nodes import SAFE_LOADER

GOALS = Path(__file__).parents[1] / "goals.yaml"
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


MapFunction = Callable[..., Iterator[Any]]
"""The built-in ``map`` or that of a process pool."""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One measured value. ``goal`` is None for a row that only informs; such a row always holds."""

    metric: str
    value: float | None
    unit: str
    versus: str | None
    versus_value: float | None
    ratio: float | None
    goal: str | None
    holds: bool


def load_goals(benchmark: str) -> dict[str, str]:
    """Returns metric → goal of one benchmark, as committed."""
    table = yaml.load(GOALS.read_text(encoding="utf-8"), Loader=SAFE_LOADER)
    return {item["metric"]: item["goal"] for item in table[benchmark]}


def meets_goal(goal: str, measured: float | None) -> bool:
    """Returns whether ``measured`` meets a goal.

    A goal is like ``<= 0.5``, ``<= 20 ms`` (measured in seconds), ``within 10 %`` (a ratio) or
    ``0.97..1.03``.
    """
    if measured is None:
        return False
    words = goal.split()
    low, dots, high = goal.partition("..")
    if dots:
        return float(low) <= measured <= float(high)
    if words[0] == "within":
        return abs(measured - 1.0) <= float(words[1]) / 100.0
    limit = float(words[1]) * (1e-3 if words[2:] == ["ms"] else 1.0)
    return _COMPARE[words[0]](measured, limit)


def ratio_row(
    metric: str, unit: str, value: float | None, versus: str, versus_value: float | None, goal: str | None
) -> ResultRow:
    """Returns a row whose goal is about value ÷ versus_value."""
    ratio = None if value is None or not versus_value else value / versus_value
    return ResultRow(metric, value, unit, versus, versus_value, ratio, goal, goal is None or meets_goal(goal, ratio))


def value_row(metric: str, unit: str, value: float | None, goal: str | None) -> ResultRow:
    """Returns a row whose goal is about the value itself."""
    return ResultRow(metric, value, unit, None, None, None, goal, goal is None or meets_goal(goal, value))


def write_results(
    name: str,
    rows: Iterable[ResultRow],
    *,
    seed: int,
    file: Path,
    load_average: Sequence[float] = (),
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes the benchmark's JSON file, and prints the same.

    load_average: of the whole machine, at several moments.
    more: further content of the file.
    """
    kept = list(rows)
    content: dict[str, Any] = {"machine": machine(), "versions": versions(), "seed": seed}
    if load_average:
        content["load_average"] = [round(one, 2) for one in load_average]
    content |= {"rows": [asdict(row) for row in kept], **(more or {})}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print_rows(name, kept, Console())


def print_rows(name: str, rows: Iterable[ResultRow], console: Console) -> None:
    """Prints the rows as a table; those that do not hold stand out."""
    table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("metric", "value", "versus", "ratio", "goal", "holds"):
        left = heading in ("metric", "goal")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading != "metric")
    for row in rows:
        versus = "" if row.versus is None else _number(row.versus_value)
        holds = "" if row.goal is None else ("yes" if row.holds else "NO")
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        style = None if row.holds else "bold red"
        table.add_row(row.metric, f"{_number(row.value)} {row.unit}", versus, ratio, row.goal or "", holds, style=style)
    console.print(table)


def machine() -> dict[str, Any]:
    """Returns facts about the machine, without any that identify it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
    }


def versions() -> dict[str, str]:
    """Returns the versions of what was measured."""
    found = {"python": platform.python_version(), "fairlead": metadata.version("fairlead-serving")}
    for package in ("uvloop", "httptools", "xxhash"):
        found[package] = metadata.version(package)
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
