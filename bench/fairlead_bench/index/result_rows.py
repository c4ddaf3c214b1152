"""Result rows of the index: goals, then the costs of the other processes, then the baseline."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fairlead_bench.results import ResultRow, load_goals, ratio_row, value_row

KINDS: Mapping[str, str] = {
    "prompts": "prompts that fill a cache",
    "eviction": "a full cache, half of them removals",
    "decoding": "32 answers being decoded",
    "alone": "every block a batch of its own",
}
BASELINE = "a hash for each block"
TEN_MILLION = 10_000_000


@dataclass(slots=True)
class IndexFigures:
    """Measured figures. ``runs`` are those of ``IndexRun.plain``, by kind; what was not measured is
    missing."""

    runs: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    many: Mapping[str, Any] | None = None
    naive: Mapping[str, Any] | None = None
    matches: Mapping[str, float] = field(default_factory=dict)


def rows(found: IndexFigures) -> list[ResultRow]:
    """Returns all rows. A goal without its figure does not hold."""
    return [*_goal_rows(found), *_cost_rows(found), *_baseline_rows(found)]


def _goal_rows(found: IndexFigures) -> Iterator[ResultRow]:
    wanted = load_goals("index")

    def row(metric: str, unit: str, value: float | None) -> ResultRow:
        return value_row(metric, unit, value, wanted[metric])

    for kind in ("prompts", "eviction", "decoding"):
        yield row(f"blocks per CPU-second of the indexer: {KINDS[kind]}", "/s", _rate(found.runs.get(kind, ())))
    for how in ("all of it everywhere", "a random depth on each"):
        yield row(f"128 blocks × 64 instances: {how}", "µs", found.matches.get(how))
    full = found.runs.get("prompts", ())
    for name in ("indexer", "mirror"):
        yield row(
            f"memory of the {name} per million blocks",
            "MB",
            _median_of(full, lambda one, name=name: _memory_per_block(one, name)),
        )
    yield row("cold mirror of a million blocks", "s", _median_of(full, _cold_million))
    many = found.many or {}
    yield row("blocks of ten million that a cold mirror serves", "", (many.get("cold") or {}).get("held"))


def _cost_rows(found: IndexFigures) -> Iterator[ResultRow]:
    yield value_row(
        f"blocks per CPU-second of the indexer: {KINDS['alone']}", "/s", _rate(found.runs.get("alone", ())), None
    )
    for kind, words in KINDS.items():
        some = found.runs.get(kind, ())
        for name, who in (("mirror", "a mirror's"), ("redis", "Redis'")):
            value = _median_of(some, lambda one, name=name: one[name]["cpu"] / one["blocks"] * 1e6)
            yield value_row(f"{who} CPU per million blocks: {words}", "s", value, None)
    for how, value in found.matches.items():
        if how not in ("all of it everywhere", "a random depth on each"):
            yield value_row(f"128 blocks × 64 instances: {how}", "µs", value, None)
    many = found.many or {}
    cold = many.get("cold") or {}
    yield value_row("ten million blocks: instances of 16 that the cold mirror has", "", cold.get("marks"), None)
    yield value_row("ten million blocks: cold mirror", "s", cold.get("seconds"), None)
    yield value_row("ten million blocks: memory of a cold mirror", "MB", _megabytes(cold.get("memory")), None)
    yield value_row(
        "ten million blocks: the indexer grew by", "MB", _megabytes((many.get("indexer") or {}).get("grew")), None
    )
    yield value_row("ten million blocks: memory of Redis", "MB", _megabytes(many.get("redis_bytes")), None)


def _baseline_rows(found: IndexFigures) -> Iterator[ResultRow]:
    """Yields rows of the same traffic (a cache that fills) in both layouts."""
    some, naive = found.runs.get("prompts", ()), found.naive or {}
    blocks = naive.get("changed")

    def other(name: str, scale: float = 1e6) -> float | None:
        return None if not blocks or naive.get(name) is None else naive[name] / blocks * scale

    pairs = [
        (
            "Redis' CPU per million blocks",
            "s",
            _median_of(some, lambda one: one["redis"]["cpu"] / one["blocks"] * 1e6),
            other("redis_cpu"),
        ),
        (
            "memory of Redis per million blocks",
            "MB",
            _median_of(some, lambda one: one["redis_bytes"] / one["blocks"]),
            other("redis_bytes", 1.0),
        ),
        (
            "CPU of who writes, decoding and truth too, per million blocks",
            "s",
            _median_of(some, lambda one: one["indexer"]["cpu"] / one["blocks"] * 1e6),
            other("cpu"),
        ),
        ("cold mirror of a million blocks", "s", _median_of(some, _cold_million), other("load_seconds")),
    ]
    for metric, unit, ours, theirs in pairs:
        yield ratio_row(f"{metric} | beside {BASELINE}", unit, ours, BASELINE, theirs, None)


def _rate(some: Sequence[Mapping[str, Any]]) -> float | None:
    return _median_of(some, lambda one: one["blocks"] / one["indexer"]["cpu"])


def _memory_per_block(one: Mapping[str, Any], name: str) -> float:
    """Bytes a block are megabytes a million."""
    return float(one[name]["grew"] / one["held"])


def _cold_million(one: Mapping[str, Any]) -> float | None:
    cold = one.get("cold")
    return None if cold is None else cold["seconds"] / cold["held"] * 1e6


def _median_of(some: Sequence[Mapping[str, Any]], figure: Any) -> float | None:
    values = [value for one in some if (value := figure(one)) is not None]
    return median(values) if values else None


def _megabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e6
