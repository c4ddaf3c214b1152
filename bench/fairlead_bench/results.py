"""Result rows with goals, the JSON file that other tools read, and the printed table."""

import argparse
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


_LOAD_BEFORE = os.getloadavg()[0]
"""The load average of the machine when the benchmark was loaded."""

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


class Goals(dict[str, str]):
    """The goals of one benchmark by metric, which make its rows.

    A row whose metric has no goal only informs.
    """

    def value(self, metric: str, unit: str, value: float | None) -> ResultRow:
        goal = self.get(metric)
        return ResultRow(metric, value, unit, None, None, None, goal, goal is None or meets_goal(goal, value))

    def ratio(self, metric: str, unit: str, value: float | None, versus: str, versus_value: float | None) -> ResultRow:
        """Returns a row whose goal is about value ÷ versus_value."""
        ratio = None if value is None or not versus_value else value / versus_value
        goal = self.get(metric)
        holds = goal is None or meets_goal(goal, ratio)
        return ResultRow(metric, value, unit, versus, versus_value, ratio, goal, holds)


NO_GOALS = Goals()
"""Rows that only inform."""


def load_goals(benchmark: str) -> Goals:
    table = yaml.load(GOALS.read_text(encoding="utf-8"), Loader=SAFE_LOADER)
    return Goals((item["metric"], item["goal"]) for item in table[benchmark])


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


def parse_options(name: str, description: str | None, arguments: Sequence[str], **options: Any) -> argparse.Namespace:
    """Returns the options of a benchmark: ``--out``, and one for each keyword.

    options: the default, or the default and a help text. A list is given with commas, and a
        type has no default. Words must be among those of the default.
    """
    parser = argparse.ArgumentParser(prog=f"python -m fairlead_bench {name}", description=description)
    for option, default in ({"out": Path(f"out/bench/{name}.json")} | options).items():
        default, text = default if isinstance(default, tuple) else (default, None)
        flag = f"--{option.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true", help=text)
        elif isinstance(default, type):
            parser.add_argument(flag, type=default, help=text)
        elif isinstance(default, list):
            parser.add_argument(flag, type=_list_of(default), default=default, metavar="A,B", help=text)
        else:
            parser.add_argument(flag, type=type(default), default=default, help=text)
    return parser.parse_args(arguments)


def _list_of(known: list[Any]) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        values = [type(known[0])(part) for part in text.split(",") if part]
        if isinstance(known[0], str) and (unknown := sorted({*values} - {*known})):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return values

    return parse


def write_results(
    name: str,
    rows: Iterable[ResultRow],
    *,
    seed: int,
    file: Path,
    more: Mapping[str, Any] | None = None,
) -> int:
    """Writes the benchmark's JSON file and prints the same.

    Returns 0 when every goal holds, else 1.

    more: further content of the file.
    """
    kept = list(rows)
    content: dict[str, Any] = {"machine": machine(), "versions": versions(), "seed": seed}
    content["load_average"] = [round(load, 2) for load in (_LOAD_BEFORE, os.getloadavg()[0])]
    content |= {"rows": [asdict(row) for row in kept], **(more or {})}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print_rows(name, kept, Console())
    return 0 if all(row.holds for row in kept) else 1


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
