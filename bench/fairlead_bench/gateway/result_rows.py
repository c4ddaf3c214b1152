"""From runs to rows: statistics over the rounds, the goals' rows first, then every figure of every
target.

A figure is the median of its valid runs. A goal whose figure, or whose peer's figure, is missing
does not hold.

The result's file and its printed form. The file also holds all runs and the peers that were
missing.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from fairlead_bench.gateway.load_cases import CASES, DECISION_SIZES, WITH_KV_EVENTS, LoadCase
from fairlead_bench.gateway.measurement import CaseRun
from fairlead_bench.gateway.tail_latency import DecisionTails
from fairlead_bench.gateway.targets import DIRECT, ENVOY, FAIRLEAD, SGLANG
from fairlead_bench.results import NO_GOALS, ResultRow, load_goals, machine, print_rows, versions

SEPARATOR = " | "
"""In a metric's name between what was measured and on which target."""
UNCONDITIONAL_METRICS = "always"
"""Stands for the case of what is measured in every run."""

BUSY_DECISION = "decision alone, 32 KB, 1M-block index, 64 busy engines"

Figure = Callable[[CaseRun], float | None]


def cpu(run: CaseRun) -> float | None:
    """Returns the µs of CPU per unit."""
    return run.cpu_microseconds


def core(run: CaseRun) -> float | None:
    return run.core_share


def under_way(share: str) -> Figure:
    return lambda run: run.under_way.get(share)


def first_event(share: str) -> Figure:
    return lambda run: run.first_event.get(share)


def delay(share: str) -> Figure:
    return lambda run: run.delay.get(share)


def kilobytes_each(run: CaseRun) -> float | None:
    """Returns the KB of memory per open stream."""
    if run.rss_bytes is None or run.rss_before_bytes is None:
        return None
    return (run.rss_bytes - run.rss_before_bytes) / 1024 / CASES[run.case].connections


class RunTable:
    """Runs by case and target."""

    def __init__(self, runs: Iterable[CaseRun]) -> None:
        self._runs: dict[tuple[str, str], list[CaseRun]] = {}
        for run in runs:
            self._runs.setdefault((run.case, run.target), []).append(run)

    def valid_runs(self, case: str, target: str) -> list[CaseRun]:
        return [run for run in self._runs.get((case, target), []) if run.is_valid]

    def median(self, case: str, target: str, figure: Figure) -> float | None:
        """Returns the median of the valid runs; None without one."""
        values = [value for run in self.valid_runs(case, target) if (value := figure(run)) is not None]
        return statistics.median(values) if values else None

    def added_over_direct(self, case: str, target: str, figure: Figure) -> float | None:
        """Returns the delay that the target adds to the same load without a proxy; None unless both
        are known."""
        through, direct = self.median(case, target, figure), self.median(case, DIRECT, figure)
        return None if through is None or direct is None else max(0.0, through - direct)

    def targets(self, case: str) -> list[str]:
        return [target for known, target in self._runs if known == case]


def rows(
    runs: Sequence[CaseRun],
    *,
    idle_bytes: Mapping[str, float],
    decisions: Mapping[str, float | None],
    tails: DecisionTails | None = None,
    absent: Iterable[str] = (),
    cases: Iterable[str] = tuple(CASES),
) -> list[ResultRow]:
    """Returns the rows of the goals as far as ``cases`` cover them, then all figures.

    Absent targets keep their rows, without a value.
    """
    table = RunTable(runs)
    asked = {UNCONDITIONAL_METRICS, *cases}
    found = [row for case, row in goal_rows(table, idle_bytes, decisions, tails) if case in asked]
    for name in dict.fromkeys(run.case for run in runs):
        found += _case_rows(table, CASES[name], [*table.targets(name), *absent])
    found += _decision_rows(decisions, tails)
    found += [
        NO_GOALS.value(f"memory, idle{SEPARATOR}{target}", "MB", size / 1e6) for target, size in idle_bytes.items()
    ]
    return found


def goal_rows(
    table: RunTable,
    idle_bytes: Mapping[str, float],
    decisions: Mapping[str, float | None],
    tails: DecisionTails | None,
) -> Iterator[tuple[str, ResultRow]]:
    """Returns a row per goal in the order of goals.yaml, with the case that it needs."""
    wanted = load_goals("gateway")

    def versus(title: str, case: str, peer: str) -> tuple[str, ResultRow]:
        metric = f"CPU per {title} ÷ {peer}"
        ours, theirs = table.median(case, FAIRLEAD, cpu), table.median(case, peer, cpu)
        return case, wanted.ratio(metric, "µs", ours, peer, theirs)

    def alone(case: str, metric: str, unit: str, value: float | None) -> tuple[str, ResultRow]:
        return case, wanted.value(metric, unit, value)

    yield versus("2 KB request", "request-2k", SGLANG)
    yield versus("2 KB request, crowded", "request-2k-crowded", SGLANG)
    yield versus("2 KB request", "request-2k", ENVOY)
    yield versus("2 KB request, crowded", "request-2k-crowded", ENVOY)
    for size in ("32", "128"):
        yield versus(f"{size} KB request", f"request-{size}k", SGLANG)
        yield versus(f"{size} KB request, crowded", f"request-{size}k-crowded", SGLANG)
    yield versus("paced chunk", "paced-200", ENVOY)
    yield versus("paced chunk, crowded", "paced-200-crowded", ENVOY)
    yield versus("paced chunk", "paced-200", SGLANG)
    case, many = "paced-1000", "1,000 streams × 20 chunks/s"
    yield alone(case, f"{many}: share of a core", "core", table.median(case, FAIRLEAD, core))
    yield alone(case, f"{many}: added delay p50", "s", table.added_over_direct(case, FAIRLEAD, under_way("p50")))
    yield alone(case, f"{many}: added delay p99", "s", table.added_over_direct(case, FAIRLEAD, under_way("p99")))
    yield alone("memory", "memory per open stream", "KB", table.median("memory", FAIRLEAD, kilobytes_each))
    idle = idle_bytes.get(FAIRLEAD)
    yield alone(UNCONDITIONAL_METRICS, "memory, idle", "MB", None if idle is None else idle / 1e6)
    for row in decision_goal_rows(decisions, tails):
        yield UNCONDITIONAL_METRICS, row
    yield alone("abort", "aborts that the engine saw", "%", aborts_seen(table.valid_runs("abort", FAIRLEAD)))
    left = [run.streams_left for run in table.valid_runs("abort", FAIRLEAD)]
    yield alone("abort", "streams left 0.5 s after their clients", "streams", max(left) if left else None)
    case = "open-220k"
    yield alone(
        case, "220 KB at 100/s: added TTFT p99", "s", table.added_over_direct(case, FAIRLEAD, first_event("p99"))
    )
    yield versus("220 KB request at 100/s", case, SGLANG)


def decision_goal_rows(decisions: Mapping[str, float | None], tails: DecisionTails | None) -> list[ResultRow]:
    """Returns the goals of routing decisions."""
    wanted = load_goals("gateway")
    found = [(f"decision alone, {size[:-1]} KB, 1M-block index", decisions.get(size)) for size in DECISION_SIZES]
    slow = None if tails is None else tails.calm
    found += [
        (f"{BUSY_DECISION}: p99", None if slow is None else slow.p99_seconds),
        (f"{BUSY_DECISION}: p99, crowded", None if tails is None else tails.crowded.p99_seconds),
        (f"{BUSY_DECISION}: hash, match and pick: p99", None if slow is None else slow.routing_seconds),
        (f"{BUSY_DECISION}: p99 of what is slow each time", None if slow is None else slow.same_seconds),
    ]
    return [wanted.value(metric, "µs", _micro(seconds)) for metric, seconds in found]


def decision_rows(decisions: Mapping[str, float | None], tails: DecisionTails | None) -> list[ResultRow]:
    return [*decision_goal_rows(decisions, tails), *_decision_rows(decisions, tails)]


def aborts_seen(runs: Sequence[CaseRun]) -> float | None:
    made = sum(run.aborts for run in runs)
    return 100.0 * sum(run.aborts_seen for run in runs) / made if made else None


def _decision_rows(decisions: Mapping[str, float | None], tails: DecisionTails | None) -> Iterator[ResultRow]:
    for size in DECISION_SIZES:
        metric = f"decision alone, {size[:-1]} KB, 1M-block index that engines confirm"
        with_it, without = (_micro(decisions.get(kind)) for kind in (size + WITH_KV_EVENTS, size))
        yield NO_GOALS.ratio(metric, "µs", with_it, "without engines' events", without)
    if tails is None:
        return
    for suffix, tail in (("", tails.calm), (", crowded", tails.crowded)):
        yield NO_GOALS.value(f"{BUSY_DECISION}: median{suffix}", "µs", _micro(tail.median_seconds))
        counting = _micro(tail.counting_seconds)
        metric = f"{BUSY_DECISION}: p99{suffix}"
        yield NO_GOALS.ratio(metric, "µs", _micro(tail.p99_seconds), "counting as long", counting)


def _case_rows(table: RunTable, case: LoadCase, targets: Iterable[str]) -> Iterator[ResultRow]:
    """Yields the figures of one kind of load, a row per figure and target."""
    figures: list[tuple[str, str, Figure]] = [(f"CPU per {case.title}", "µs", cpu)]
    if case.mode == "hold" and not case.fresh:
        figures.append((f"{case.title}: share of a core", "core", core))
        figures += [(f"{case.title}: delay {share}", "s", under_way(share)) for share in ("p50", "p99")]
    if case.fresh:
        figures = [(f"{case.title}: memory of each", "KB", kilobytes_each)]
    if case.mode == "open" and case.events:
        figures += [(f"{case.title}: TTFT {share}", "s", first_event(share)) for share in ("p50", "p99")]
    if not case.events:
        figures += [(f"{case.title}: latency {share}", "s", delay(share)) for share in ("p50", "p99")]
    if case.mode == "abort":
        figures.append((f"{case.title}: streams left", "streams", lambda run: float(run.streams_left)))
    for title, unit, figure in figures:
        ours = table.median(case.name, FAIRLEAD, figure)
        for target in dict.fromkeys(targets):
            value = table.median(case.name, target, figure)
            if target == DIRECT and figure in (cpu, core):
                continue
            if target == FAIRLEAD:
                yield NO_GOALS.value(f"{title}{SEPARATOR}{target}", unit, value)
            else:
                yield NO_GOALS.ratio(f"{title}{SEPARATOR}{target}", unit, value, FAIRLEAD, ours)


def _micro(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


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
