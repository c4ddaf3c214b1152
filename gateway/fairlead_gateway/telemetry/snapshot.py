"""Snapshots of counters, to be sent to another process and added up.

Adding is exact: counters and histograms are integers over the same bounds everywhere. A window is a
difference of two states, so windows that end together add up too. Sums of seconds are floats.
"""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec

from fairlead_gateway.telemetry.counters import CounterSet, InstanceCounters, ModelCounters

CounterValues: TypeAlias = tuple[list[int], list[float]]
TableRows: TypeAlias = list[tuple[list[int | str], int]]

TABLES = (
    "adapter_evictions",
    "adapter_load_failures",
    "adapter_load_microseconds",
    "adapter_loads",
    "adapter_requests",
    "by_kind",
    "by_route",
    "by_rule",
    "by_shape",
    "by_status",
    "continued",
    "ejections_by_reason",
    "failed",
    "fallbacks",
    "handoffs",
    "held",
    "kept_back",
    "moved",
    "not_continued",
    "prefill_legs",
    "retries_by_reason",
    "shadow_copies",
    "shadow_sums",
)
"""The tables of a model's counters, by name."""


class InstanceSnapshot(msgspec.Struct, array_like=True):
    """The counters of one instance; `window` is the last minute, None if it was not requested."""

    totals: CounterValues
    window: CounterValues | None


class ModelSnapshot(msgspec.Struct, array_like=True):
    """The counters of one model; each table is a list of (key, count)."""

    key: str
    totals: CounterValues
    window: CounterValues | None
    tables: dict[str, TableRows]
    instances: dict[str, InstanceSnapshot]


def snapshot_of(key: str, series: ModelCounters, now: float | None) -> ModelSnapshot:
    """Returns a copy of counters, with the minute before `now`; without it if `now` is None."""
    return ModelSnapshot(
        key,
        _totals(series),
        None if now is None else series.last_minute(now),
        {name: _encode_table(getattr(series, name)) for name in TABLES},
        {
            item: InstanceSnapshot(_totals(found), None if now is None else found.last_minute(now))
            for item, found in series.instances.items()
        },
    )


def merge(first: ModelSnapshot, second: ModelSnapshot) -> ModelSnapshot:
    """Returns the sum of two snapshots of one model."""
    instances = dict(first.instances)
    for item, part in second.instances.items():
        known = instances.get(item)
        instances[item] = (
            part
            if known is None
            else InstanceSnapshot(_add_values(known.totals, part.totals), _add_windows(known.window, part.window))
        )
    return ModelSnapshot(
        first.key,
        _add_values(first.totals, second.totals),
        _add_windows(first.window, second.window),
        {name: _merge_tables(first.tables.get(name, []), second.tables.get(name, [])) for name in TABLES},
        instances,
    )


def sum_snapshots(processes: Iterable[Mapping[str, ModelSnapshot]]) -> dict[str, ModelSnapshot]:
    """Returns the sums of all processes, by model."""
    totals: dict[str, ModelSnapshot] = {}
    for models in processes:
        for key, part in models.items():
            totals[key] = merge(totals[key], part) if key in totals else part
    return totals


def restore_counters(snapshot: ModelSnapshot, now: float) -> ModelCounters:
    """Returns counters with the values of a snapshot. Their last minute at `now` is the
    snapshot's window; without one, it is empty.
    """
    series = ModelCounters()
    _restore(series, snapshot.totals, snapshot.window, now)
    for name in TABLES:
        getattr(series, name).update({_decode_key(key): count for key, count in snapshot.tables.get(name, [])})
    for item, found in snapshot.instances.items():
        instance = series.instances[item] = InstanceCounters(now)
        _restore(instance, found.totals, found.window, now)
    return series


def _totals(series: CounterSet) -> CounterValues:
    return series.ints[:], series.sums[:]


def _restore(series: CounterSet, totals: CounterValues, window: CounterValues | None, now: float) -> None:
    """Sets the totals, and the earlier state by which `last_minute` returns the window."""
    ints, sums = totals
    if window is not None:
        series.replace(
            [new - more for new, more in zip(ints, window[0], strict=True)],
            [new - more for new, more in zip(sums, window[1], strict=True)],
        )
        series.start_second(int(now))
    series.replace(list(ints), list(sums))


def _add_values(left: CounterValues, right: CounterValues) -> CounterValues:
    return (
        [first + second for first, second in zip(left[0], right[0], strict=True)],
        [first + second for first, second in zip(left[1], right[1], strict=True)],
    )


def _add_windows(first: CounterValues | None, second: CounterValues | None) -> CounterValues | None:
    if first is None or second is None:
        return second if first is None else first
    return _add_values(first, second)


def _encode_table(table: Mapping[int | str | tuple[int | str, ...], int]) -> TableRows:
    return [(list(key) if isinstance(key, tuple) else [key], count) for key, count in table.items()]


def _decode_key(parts: list[int | str]) -> int | str | tuple[int | str, ...]:
    return parts[0] if len(parts) == 1 else tuple(parts)


def _merge_tables(first: TableRows, second: TableRows) -> TableRows:
    found: dict[int | str | tuple[int | str, ...], int] = {}
    for key, count in (*first, *second):
        name = _decode_key(key)
        found[name] = found.get(name, 0) + count
    return _encode_table(found)
