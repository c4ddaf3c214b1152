"""The counters of one process as values that can be sent and added up: what several workers counted is the sum of their parts.

Adding is exact: counters and histograms are integers over the same bounds everywhere, and a window is a difference of two states of
them, so windows that end at the same moment add up too. (Sums of seconds are floats and exact to their last digits.)
"""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec

from fairlead_gateway.telemetry.series import InstanceSeries, ModelSeries, Tally

Counts: TypeAlias = tuple[list[int], list[float]]
Rows: TypeAlias = list[tuple[list[int | str], int]]

TABLES = (
    "by_kind",
    "by_rule",
    "by_shape",
    "by_status",
    "continued",
    "ejections_by_reason",
    "failed",
    "handoffs",
    "held",
    "prefill_legs",
    "retries_by_reason",
)
"""The tables of a model's series, by name."""


class InstancePart(msgspec.Struct, array_like=True):
    """One instance; ``window`` is what the last minute added, None where nobody asked."""

    totals: Counts
    window: Counts | None


class ModelPart(msgspec.Struct, array_like=True):
    """One model; each table is a list of (key, count)."""

    key: str
    totals: Counts
    window: Counts | None
    tables: dict[str, Rows]
    instances: dict[str, InstancePart]


def part_of(key: str, series: ModelSeries, now: float | None) -> ModelPart:
    """A copy of a series, with the minute before ``now``."""
    return ModelPart(
        key,
        _totals(series),
        None if now is None else series.window(now),
        {name: _rows(getattr(series, name)) for name in TABLES},
        {
            item: InstancePart(_totals(found), None if now is None else found.window(now))
            for item, found in series.instances.items()
        },
    )


def added(one: ModelPart, other: ModelPart) -> ModelPart:
    """Both together, for the same model."""
    instances = dict(one.instances)
    for item, part in other.instances.items():
        known = instances.get(item)
        instances[item] = (
            part
            if known is None
            else InstancePart(_counts(known.totals, part.totals), _windows(known.window, part.window))
        )
    return ModelPart(
        one.key,
        _counts(one.totals, other.totals),
        _windows(one.window, other.window),
        {name: _tables(one.tables.get(name, []), other.tables.get(name, [])) for name in TABLES},
        instances,
    )


def sum_of(processes: Iterable[Mapping[str, ModelPart]]) -> dict[str, ModelPart]:
    """The models of all processes, added up."""
    found: dict[str, ModelPart] = {}
    for models in processes:
        for key, part in models.items():
            found[key] = added(found[key], part) if key in found else part
    return found


def series_of(part: ModelPart, now: float) -> ModelSeries:
    """A series that shows what a part says; its window is the part's when it is asked for about ``now``."""
    series = ModelSeries()
    _fill(series, part.totals, part.window, now)
    for name in TABLES:
        getattr(series, name).update({_key(key): count for key, count in part.tables.get(name, [])})
    for item, found in part.instances.items():
        instance = series.instances[item] = InstanceSeries(now)
        _fill(instance, found.totals, found.window, now)
    return series


def _totals(series: Tally) -> Counts:
    return series.ints[:], series.sums[:]


def _fill(series: Tally, totals: Counts, window: Counts | None, now: float) -> None:
    """A window is kept as the state before it."""
    ints, sums = totals
    if window is not None:
        series.use(
            [new - more for new, more in zip(ints, window[0], strict=True)],
            [new - more for new, more in zip(sums, window[1], strict=True)],
        )
        series.roll(int(now))
    series.use(list(ints), list(sums))


def _counts(one: Counts, other: Counts) -> Counts:
    return (
        [first + second for first, second in zip(one[0], other[0], strict=True)],
        [first + second for first, second in zip(one[1], other[1], strict=True)],
    )


def _windows(one: Counts | None, other: Counts | None) -> Counts | None:
    if one is None or other is None:
        return other if one is None else one
    return _counts(one, other)


def _rows(table: Mapping[int | str | tuple[int | str, ...], int]) -> Rows:
    return [(list(key) if isinstance(key, tuple) else [key], count) for key, count in table.items()]


def _key(parts: list[int | str]) -> int | str | tuple[int | str, ...]:
    return parts[0] if len(parts) == 1 else tuple(parts)


def _tables(one: Rows, other: Rows) -> Rows:
    found: dict[int | str | tuple[int | str, ...], int] = {}
    for key, count in (*one, *other):
        name = _key(key)
        found[name] = found.get(name, 0) + count
    return _rows(found)
