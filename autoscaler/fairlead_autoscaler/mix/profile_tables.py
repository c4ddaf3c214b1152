"""Profile tables: measured throughputs of accelerators by shape, read from CSV or JSON files.

A table is a grid of prompt and output lengths. A length is the upper edge of its bucket, so a table
that was measured at those lengths promises no more than it should. Throughput is the requests per
second of one replica that serves only this shape, within the targets of the table. 0 means that it
cannot.

CSV has one line for each accelerator and shape, under a header with these columns in any order:

    accelerator,cost_per_hour,prompt_tokens,output_tokens,requests_per_second

JSON has Fairlead's format, or is the unchanged configuration file of Mélange's solver. The latter
has `gpu_info` with `cost` and `tputs`, rows by input and columns by output, and no lengths. The
table's rates are `workload_distribution` × `total_request_rate`.

    {"prompt_tokens": [256, 1024], "output_tokens": [64, 512],
     "accelerators": [{"name": "L4", "cost_per_hour": 0.8,
                       "requests_per_second": [[4, 1], [2, 0.6]]}]}
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fairlead.errors import BadInput, FileProblem, ManifestError
from fairlead.request_shapes import RequestShapeGrid
from fairlead_autoscaler.mix.types import PoolCandidate

COLUMNS = ("accelerator", "cost_per_hour", "prompt_tokens", "output_tokens", "requests_per_second")


@dataclass(frozen=True, slots=True)
class TableAccelerator:
    """One accelerator of a table, with `requests_per_second[prompt][output]`."""

    name: str
    cost_per_hour: float
    requests_per_second: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ProfileTable:
    """A table of throughputs.

    prompt_tokens, output_tokens: upper edges of the buckets; None if the file has none.
    rates: requests per second of each shape that the file asks for; None if it asks for none.
    """

    prompt_tokens: tuple[float, ...] | None
    output_tokens: tuple[float, ...] | None
    accelerators: tuple[TableAccelerator, ...]
    rates: tuple[tuple[float, ...], ...] | None = None


def load_profile_table(path: Path) -> ProfileTable:
    """Returns the table in a file: CSV or JSON, by the ending of its name.

    Raises ManifestError with every problem: line and column of a CSV file, path of a JSON value.
    Raises BadInput if the file cannot be read at all.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}", field="table") from error
    if path.suffix.lower() == ".csv":
        return parse_csv(text, file=path.name)
    if path.suffix.lower() == ".json":
        return parse_json(text, file=path.name)
    raise BadInput(
        f"{path.name} is neither .csv nor .json", field="table", hint="the ending of the name decides the format"
    )


def parse_csv(text: str, *, file: str = "table.csv") -> ProfileTable:
    """Returns the table in a CSV text. Raises ManifestError."""
    problems = _Problems(file)
    reader = csv.reader(text.splitlines())
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        problems.add(reader.line_num, "", str(error), "write plain CSV")
        problems.raise_if_any()
    header = [name.strip() for name in lines[0][1]] if lines else []
    for missing in [name for name in COLUMNS if name not in header]:
        problems.add(1, missing, "the header lacks this column", f"the first line is {','.join(COLUMNS)}")
    problems.raise_if_any()
    cells: dict[str, dict[tuple[float, float], float]] = {}
    costs: dict[str, float] = {}
    for number, row in lines[1:]:
        if row:
            _parse_row(dict(zip(header, row, strict=False)), number, cells, costs, problems)
    if not cells and not problems.problems:
        problems.add(1, "accelerator", "the table has no lines", "one line for each accelerator and shape")
    problems.raise_if_any()
    prompts = sorted({prompt for shapes in cells.values() for prompt, _ in shapes})
    outputs = sorted({output for shapes in cells.values() for _, output in shapes})
    for name, shapes in cells.items():
        for prompt, output in [(one, two) for one in prompts for two in outputs if (one, two) not in shapes]:
            message = f"{name} has no line for {prompt:g} prompt and {output:g} output tokens"
            problems.add(lines[-1][0], "requests_per_second", message, "give every shape, 0 where it cannot be served")
    problems.raise_if_any()
    accelerators = tuple(
        TableAccelerator(name, costs[name], tuple(tuple(shapes[one, two] for two in outputs) for one in prompts))
        for name, shapes in cells.items()
    )
    return ProfileTable(tuple(prompts), tuple(outputs), accelerators)


def parse_json(text: str, *, file: str = "table.json") -> ProfileTable:
    """Returns the table in a JSON text of Fairlead's or Mélange's format. Raises ManifestError."""
    problems = _Problems(file)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        problems.add(error.lineno, f"column {error.colno}", error.msg, "write JSON")
        problems.raise_if_any()
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list thousands deep
        problems.add(1, "", str(error), "write a table")
        problems.raise_if_any()
    if not isinstance(content, dict):
        problems.add(1, "", "this is not an object", "write an object with accelerators, or with gpu_info")
        problems.raise_if_any()
    table = _parse_melange(content, problems) if "gpu_info" in content else _parse_native(content, problems)
    problems.raise_if_any()
    return table


class _Problems:
    """The problems of one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[FileProblem] = []

    def add(self, line: int, field: str, message: str, fix: str) -> None:
        self.problems.append(FileProblem(self.file, line, field, message, fix))

    def raise_if_any(self) -> None:
        """Raises ManifestError if there are problems."""
        if self.problems:
            raise ManifestError(tuple(self.problems))


def _parse_row(
    row: Mapping[str, Any],
    line: int,
    cells: dict[str, dict[tuple[float, float], float]],
    costs: dict[str, float],
    problems: _Problems,
) -> None:
    """Adds one line of CSV to `cells` and `costs`, or its problems to `problems`."""
    name = str(row.get("accelerator") or "").strip()
    if not name:
        problems.add(line, "accelerator", "this is empty", "name the accelerator")
        return
    values = [_parse_number(row.get(column), line, column, problems, least=0.0) for column in COLUMNS[1:]]
    if any(value is None for value in values):
        return
    cost, prompt, output, rate = [value for value in values if value is not None]
    if costs.setdefault(name, cost) != cost:
        problems.add(
            line, "cost_per_hour", f"{name} costs {costs[name]:g} further up", "one price for each accelerator"
        )
    shapes = cells.setdefault(name, {})
    if (prompt, output) in shapes:
        message = f"{name} has a line for {prompt:g} and {output:g} tokens already"
        problems.add(line, "prompt_tokens", message, "one line for each shape")
    shapes[prompt, output] = rate


def _parse_number(value: Any, line: int, field: str, problems: _Problems, *, least: float) -> float | None:
    """Returns a finite number that is at least `least`; None, with a problem, for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number < least:
        problems.add(line, field, f"{value!r} is not a number of at least {least:g}", "write a plain number")
        return None
    return number


def _parse_native(content: Mapping[str, Any], problems: _Problems) -> ProfileTable:
    prompts = _parse_lengths(content, "prompt_tokens", problems)
    outputs = _parse_lengths(content, "output_tokens", problems)
    listed = content.get("accelerators")
    if not isinstance(listed, list) or not listed:
        problems.add(1, "accelerators", "this is not a list of accelerators", "give at least one")
        problems.raise_if_any()
    problems.raise_if_any()
    accelerators = []
    assert isinstance(listed, list)
    for place, entry in enumerate(listed):
        at = f"accelerators[{place}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            problems.add(
                1, f"{at}.name", "an accelerator has a name", "write {name, cost_per_hour, requests_per_second}"
            )
            continue
        cost = _parse_number(entry.get("cost_per_hour"), 1, f"{at}.cost_per_hour", problems, least=0.0)
        grid = _parse_grid(
            entry.get("requests_per_second"), f"{at}.requests_per_second", problems, (len(prompts), len(outputs))
        )
        accelerators.append(TableAccelerator(entry["name"], cost or 0.0, grid))
    return ProfileTable(prompts, outputs, tuple(accelerators))


def _parse_melange(content: Mapping[str, Any], problems: _Problems) -> ProfileTable:
    shares = _parse_grid(content.get("workload_distribution"), "workload_distribution", problems, None)
    total = _parse_number(content.get("total_request_rate"), 1, "total_request_rate", problems, least=0.0)
    info = content["gpu_info"]
    if not isinstance(info, dict) or not info:
        problems.add(1, "gpu_info", "this is not an object of accelerators", "name → {cost, tputs}")
        problems.raise_if_any()
    problems.raise_if_any()
    size = (len(shares), len(shares[0]))
    accelerators = []
    for name, entry in info.items():
        at = f"gpu_info.{name}"
        if not isinstance(entry, dict):
            problems.add(1, at, "this is not an object", "write {cost, tputs}")
            continue
        cost = _parse_number(entry.get("cost"), 1, f"{at}.cost", problems, least=0.0)
        accelerators.append(
            TableAccelerator(name, cost or 0.0, _parse_grid(entry.get("tputs"), f"{at}.tputs", problems, size))
        )
    rates = tuple(tuple(share * (total or 0.0) for share in row) for row in shares)
    return ProfileTable(None, None, tuple(accelerators), rates)


def _parse_lengths(content: Mapping[str, Any], field: str, problems: _Problems) -> tuple[float, ...]:
    """Returns the upper edges of buckets, in tokens; adds a problem for edges that do not rise."""
    given = content.get(field)
    if not isinstance(given, list) or not given:
        problems.add(1, field, "this is not a list of lengths", "upper edges of the buckets in tokens, rising")
        return ()
    values = [_parse_number(value, 1, f"{field}[{place}]", problems, least=1.0) for place, value in enumerate(given)]
    known = tuple(value for value in values if value is not None)
    for place, (lower, upper) in enumerate(pairwise(known)):
        if upper <= lower:
            problems.add(
                1, f"{field}[{place + 1}]", f"{upper:g} is not above {lower:g}", "write lengths in rising order"
            )
    return known


def _parse_grid(
    value: Any, field: str, problems: _Problems, size: tuple[int, int] | None
) -> tuple[tuple[float, ...], ...]:
    """Returns a grid of numbers; what is no number is 0 there, and adds a problem.

    size: None: the first row says how many columns there are.
    """
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and row for row in value):
        problems.add(
            1, field, "this is not a grid", "a list for each prompt length, of one number for each output length"
        )
        return ((0.0,),)
    rows, columns = size or (len(value), len(value[0]))
    if len(value) != rows:
        problems.add(1, field, f"{len(value)} rows where there are {rows} prompt lengths", "one row for each")
    for place, row in enumerate(value):
        if len(row) != columns:
            problems.add(
                1, f"{field}[{place}]", f"{len(row)} numbers where there are {columns} output lengths", "one for each"
            )
    return tuple(
        tuple(
            _parse_number(number, 1, f"{field}[{row}][{column}]", problems, least=0.0) or 0.0
            for column, number in enumerate(cells)
        )
        for row, cells in enumerate(value)
    )


def flatten(grid: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Returns the rows of a grid one after the other, which is the order of shapes."""
    return tuple(value for row in grid for value in row)


def candidates_of(table: ProfileTable, pools: Mapping[str, PoolCandidate] | None = None) -> list[PoolCandidate]:
    """Returns the accelerators of a table as candidates, in its order.

    pools: bounds, running replicas and startup time by the accelerator's name; throughput and cost
        are those of the table.
    """
    candidates = []
    for accelerator in table.accelerators:
        pool = (pools or {}).get(accelerator.name) or PoolCandidate(accelerator.name, accelerator.cost_per_hour, ())
        candidates.append(
            replace(pool, cost_per_hour=accelerator.cost_per_hour, throughput=flatten(accelerator.requests_per_second))
        )
    return candidates


def grid_of(table: ProfileTable) -> RequestShapeGrid:
    """Returns the buckets whose upper edges are the table's lengths. Raises BadInput for a table
    without lengths, such as Mélange's files.
    """
    if table.prompt_tokens is None or table.output_tokens is None:
        raise BadInput("the table does not say which lengths its rows and columns stand for", field="table")
    return RequestShapeGrid((0.0, *table.prompt_tokens), (0.0, *table.output_tokens))
