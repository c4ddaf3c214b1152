"""Tables of what accelerators serve of each shape of request, as measured elsewhere: read from CSV or JSON, with errors that
say where.

A table is a grid of prompt × answer lengths. A length is the upper edge of its bucket, so a table that was measured at those
lengths promises no more than it should. Throughput is requests per second of one replica that serves this shape alone,
within the objectives that the table was made for; 0 = it cannot.

CSV: one line for each accelerator and shape, under a header with these columns in any order:

    accelerator,cost_per_hour,prompt_tokens,output_tokens,requests_per_second

JSON: ours, or the configuration file of Mélange's solver as it is (``gpu_info`` with ``cost`` and ``tputs``, rows by input
and columns by output; ``workload_distribution`` × ``total_request_rate`` becomes the table's own rates; it knows no lengths):

    {"prompt_tokens": [256, 1024], "output_tokens": [64, 512],
     "accelerators": [{"name": "L4", "cost_per_hour": 0.8, "requests_per_second": [[4, 1], [2, 0.6]]}]}
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
    """One accelerator of a table; ``requests_per_second[prompt][output]``."""

    name: str
    cost_per_hour: float
    requests_per_second: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ProfileTable:
    """``prompt_tokens`` and ``output_tokens`` are the upper edges of the buckets, None where the file names none. ``rates``
    is how many requests per second of each shape the file itself asks for, None where it asks for none."""

    prompt_tokens: tuple[float, ...] | None
    output_tokens: tuple[float, ...] | None
    accelerators: tuple[TableAccelerator, ...]
    rates: tuple[tuple[float, ...], ...] | None = None


def load_profile_table(path: Path) -> ProfileTable:
    """Read a file, CSV or JSON by its ending. Raises ManifestError with every problem found (line and column of a CSV file,
    path of a JSON value), BadInput where it cannot be read at all."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}", field="table") from error
    if path.suffix.lower() == ".csv":
        return parse_csv(text, file=path.name)
    if path.suffix.lower() == ".json":
        return parse_json(text, file=path.name)
    raise BadInput(f"{path.name} is neither .csv nor .json", field="table", hint="the ending says how it is read")


def parse_csv(text: str, *, file: str = "table.csv") -> ProfileTable:
    """A table from CSV text. Raises ManifestError."""
    found = _Problems(file)
    reader = csv.reader(text.splitlines())
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        found.add(reader.line_num, "", str(error), "write plain CSV")
        found.raise_if_any()
    header = [name.strip() for name in lines[0][1]] if lines else []
    for missing in [name for name in COLUMNS if name not in header]:
        found.add(1, missing, "the header lacks this column", f"the first line is {','.join(COLUMNS)}")
    found.raise_if_any()
    cells: dict[str, dict[tuple[float, float], float]] = {}
    costs: dict[str, float] = {}
    for number, row in lines[1:]:
        if row:
            _parse_row(dict(zip(header, row, strict=False)), number, cells, costs, found)
    if not cells and not found.problems:
        found.add(1, "accelerator", "the table has no lines", "one line for each accelerator and shape")
    found.raise_if_any()
    prompts = sorted({prompt for shapes in cells.values() for prompt, _ in shapes})
    outputs = sorted({output for shapes in cells.values() for _, output in shapes})
    for name, shapes in cells.items():
        for prompt, output in [(one, two) for one in prompts for two in outputs if (one, two) not in shapes]:
            said = f"{name} has no line for {prompt:g} prompt and {output:g} output tokens"
            found.add(lines[-1][0], "requests_per_second", said, "give every shape, 0 where it cannot be served")
    found.raise_if_any()
    accelerators = tuple(
        TableAccelerator(name, costs[name], tuple(tuple(shapes[one, two] for two in outputs) for one in prompts))
        for name, shapes in cells.items()
    )
    return ProfileTable(tuple(prompts), tuple(outputs), accelerators)


def parse_json(text: str, *, file: str = "table.json") -> ProfileTable:
    """A table from JSON text, ours or Mélange's. Raises ManifestError."""
    found = _Problems(file)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        found.add(error.lineno, f"column {error.colno}", error.msg, "write JSON")
        found.raise_if_any()
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list thousands deep
        found.add(1, "", str(error), "write a table")
        found.raise_if_any()
    if not isinstance(content, dict):
        found.add(1, "", "this is no object", "write an object with accelerators, or with gpu_info")
        found.raise_if_any()
    table = _parse_melange(content, found) if "gpu_info" in content else _parse_native(content, found)
    found.raise_if_any()
    return table


class _Problems:
    """What is wrong with a file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[FileProblem] = []

    def add(self, line: int, field: str, message: str, fix: str) -> None:
        """One more."""
        self.problems.append(FileProblem(self.file, line, field, message, fix))

    def raise_if_any(self) -> None:
        """Raises ManifestError if there is anything."""
        if self.problems:
            raise ManifestError(tuple(self.problems))


def _parse_row(
    row: Mapping[str, Any],
    line: int,
    cells: dict[str, dict[tuple[float, float], float]],
    costs: dict[str, float],
    found: _Problems,
) -> None:
    """Take one line of CSV in, or say what is wrong with it."""
    name = str(row.get("accelerator") or "").strip()
    if not name:
        found.add(line, "accelerator", "this is empty", "name the accelerator")
        return
    values = [_parse_number(row.get(column), line, column, found, least=0.0) for column in COLUMNS[1:]]
    if any(value is None for value in values):
        return
    cost, prompt, output, rate = [value for value in values if value is not None]
    if costs.setdefault(name, cost) != cost:
        found.add(line, "cost_per_hour", f"{name} costs {costs[name]:g} further up", "one price for each accelerator")
    shapes = cells.setdefault(name, {})
    if (prompt, output) in shapes:
        said = f"{name} has a line for {prompt:g} and {output:g} tokens already"
        found.add(line, "prompt_tokens", said, "one line for each shape")
    shapes[prompt, output] = rate


def _parse_number(value: Any, line: int, field: str, found: _Problems, *, least: float) -> float | None:
    """A finite number from ``least`` on, or None with a problem added."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number < least:
        found.add(line, field, f"{value!r} is no number from {least:g} on", "write a plain number")
        return None
    return number


def _parse_native(content: Mapping[str, Any], found: _Problems) -> ProfileTable:
    prompts = _parse_lengths(content, "prompt_tokens", found)
    outputs = _parse_lengths(content, "output_tokens", found)
    listed = content.get("accelerators")
    if not isinstance(listed, list) or not listed:
        found.add(1, "accelerators", "this is no list of accelerators", "give at least one")
        found.raise_if_any()
    found.raise_if_any()
    accelerators = []
    assert isinstance(listed, list)
    for place, one in enumerate(listed):
        at = f"accelerators[{place}]"
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            found.add(1, f"{at}.name", "an accelerator has a name", "write {name, cost_per_hour, requests_per_second}")
            continue
        cost = _parse_number(one.get("cost_per_hour"), 1, f"{at}.cost_per_hour", found, least=0.0)
        grid = _parse_grid(
            one.get("requests_per_second"), f"{at}.requests_per_second", found, (len(prompts), len(outputs))
        )
        accelerators.append(TableAccelerator(one["name"], cost or 0.0, grid))
    return ProfileTable(prompts, outputs, tuple(accelerators))


def _parse_melange(content: Mapping[str, Any], found: _Problems) -> ProfileTable:
    shares = _parse_grid(content.get("workload_distribution"), "workload_distribution", found, None)
    total = _parse_number(content.get("total_request_rate"), 1, "total_request_rate", found, least=0.0)
    info = content["gpu_info"]
    if not isinstance(info, dict) or not info:
        found.add(1, "gpu_info", "this is no object of accelerators", "name → {cost, tputs}")
        found.raise_if_any()
    found.raise_if_any()
    size = (len(shares), len(shares[0]))
    accelerators = []
    for name, one in info.items():
        at = f"gpu_info.{name}"
        if not isinstance(one, dict):
            found.add(1, at, "this is no object", "write {cost, tputs}")
            continue
        cost = _parse_number(one.get("cost"), 1, f"{at}.cost", found, least=0.0)
        accelerators.append(
            TableAccelerator(name, cost or 0.0, _parse_grid(one.get("tputs"), f"{at}.tputs", found, size))
        )
    rates = tuple(tuple(share * (total or 0.0) for share in row) for row in shares)
    return ProfileTable(None, None, tuple(accelerators), rates)


def _parse_lengths(content: Mapping[str, Any], field: str, found: _Problems) -> tuple[float, ...]:
    """Upper edges of buckets, rising."""
    given = content.get(field)
    if not isinstance(given, list) or not given:
        found.add(1, field, "this is no list of lengths", "upper edges of the buckets in tokens, rising")
        return ()
    values = [_parse_number(value, 1, f"{field}[{place}]", found, least=1.0) for place, value in enumerate(given)]
    known = tuple(value for value in values if value is not None)
    for place, (one, two) in enumerate(pairwise(known)):
        if two <= one:
            found.add(1, f"{field}[{place + 1}]", f"{two:g} does not lie above {one:g}", "let lengths rise")
    return known


def _parse_grid(
    value: Any, field: str, found: _Problems, size: tuple[int, int] | None
) -> tuple[tuple[float, ...], ...]:
    """A grid of numbers, of ``size`` where one is given; of what its first row says else."""
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and row for row in value):
        found.add(1, field, "this is no grid", "a list for each prompt length, of one number for each output length")
        return ((0.0,),)
    rows, columns = size or (len(value), len(value[0]))
    if len(value) != rows:
        found.add(1, field, f"{len(value)} rows where there are {rows} prompt lengths", "one row for each")
    for place, row in enumerate(value):
        if len(row) != columns:
            found.add(
                1, f"{field}[{place}]", f"{len(row)} numbers where there are {columns} output lengths", "one for each"
            )
    return tuple(
        tuple(
            _parse_number(one, 1, f"{field}[{row}][{column}]", found, least=0.0) or 0.0
            for column, one in enumerate(cells)
        )
        for row, cells in enumerate(value)
    )


def flatten(grid: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """A grid as one row after the other, which is how shapes are counted."""
    return tuple(value for row in grid for value in row)


def candidates_of(table: ProfileTable, pools: Mapping[str, PoolCandidate] | None = None) -> list[PoolCandidate]:
    """The table's accelerators in its order. ``pools``: what is known of the pool of an accelerator, by its name (bounds,
    running replicas, start-up; its throughput and cost are replaced by the table's); accelerators without one are free to be
    used or not."""
    found = []
    for one in table.accelerators:
        pool = (pools or {}).get(one.name) or PoolCandidate(one.name, one.cost_per_hour, ())
        found.append(replace(pool, cost_per_hour=one.cost_per_hour, throughput=flatten(one.requests_per_second)))
    return found


def grid_of(table: ProfileTable) -> RequestShapeGrid:
    """The buckets that the table's lengths are the upper edges of. Raises BadInput for a table without lengths (Mélange's
    files)."""
    if table.prompt_tokens is None or table.output_tokens is None:
        raise BadInput("the table does not say which lengths its rows and columns stand for", field="table")
    return RequestShapeGrid((0.0, *table.prompt_tokens), (0.0, *table.output_tokens))
