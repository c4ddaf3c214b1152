"""Limits of tenants: how exact they are in simulated time, and what they do under faults.

    python -m fairlead_bench quota [--parts faults,simulated] [--keep FILE]

- `faults`: gateways die and Redis loses its state (`gateway_faults`).
- `simulated`: over-run and under-use of estimated and strict limits (`accuracy`).

The cost of limits is a part of `tenant-instructions` (`request_cost`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean

from fairlead_bench.quota import gateway_faults
from fairlead_bench.quota.accuracy import (
    ESTIMATED,
    STRICT,
    Accuracy,
    TenantLimits,
    TrafficCase,
    accuracy,
    can_serve,
    play,
)
from fairlead_bench.results import Goals, MapFunction, ResultRow, load_goals, parse_options, write_results

PARTS = {"faults": gateway_faults.METRICS, "simulated": ("simulated, ",)}
"""The parts, and how the metrics of each begin."""
CASES = (
    TrafficCase("requests", TenantLimits(requests=600), 1_200),
    TrafficCase("tokens", TenantLimits(tokens=200_000), 1_000),
    TrafficCase("tokens, max_tokens 1,000", TenantLimits(tokens=200_000), 1_000, max_tokens=1_000),
    TrafficCase("tokens, a small tenant", TenantLimits(tokens=30_000), 150),
    TrafficCase("requests and tokens", TenantLimits(requests=600, tokens=200_000), 1_000),
    TrafficCase("budget", TenantLimits(budget=1_800_000_000), 1_000),
    TrafficCase("budget, max_tokens 1,000", TenantLimits(budget=1_800_000_000), 1_000, max_tokens=1_000),
    TrafficCase("budget, a small tenant", TenantLimits(budget=270_000_000), 150),
)
"""Each tenant wants about twice what its limits allow."""
WINDOWS = 8
_NAME = "quota"


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark, prints the table and writes it; returns 1 if a goal is missed."""
    given = parse_options(
        _NAME,
        __doc__,
        arguments,
        parts=list(PARTS),
        seeds=([1, 2, 3], "of the traffic; the first one for processes"),
        keep=(Path, "results from which the rows of other parts are kept"),
    )
    goals = load_goals(_NAME)
    found = gateway_faults.rows(given.seeds[0], goals) if "faults" in given.parts else []
    if "simulated" in given.parts:
        with ProcessPoolExecutor() as pool:
            found += accuracy_rows(simulated(given.seeds, pool.map), goals)
    if given.keep is not None:
        found = [*kept_rows(given.keep, given.parts), *found]
    return write_results(_NAME, found, seed=given.seeds[0], file=given.out)


def kept_rows(file: Path, parts: Sequence[str]) -> list[ResultRow]:
    """Returns the rows of an earlier run that belong to other parts."""
    rows = [ResultRow(**row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    measured = tuple(begin for part in parts for begin in PARTS[part])
    return [row for row in rows if not row.metric.startswith(measured)]


def simulated(seeds: Sequence[int], mapped: MapFunction = map) -> dict[tuple[str, str], list[Accuracy]]:
    """Returns the accuracy of both kinds of limits in every case, by seed."""
    jobs = [
        (case, enforcement, seed)
        for case in CASES
        for enforcement in (ESTIMATED, STRICT)
        if can_serve(enforcement, case)
        for seed in seeds
    ]
    found: dict[tuple[str, str], list[Accuracy]] = {}
    for (case, enforcement, _), one in zip(jobs, mapped(_simulate, jobs), strict=True):
        found.setdefault((case.name, enforcement), []).append(one)
    return found


def _simulate(job: tuple[TrafficCase, str, int]) -> Accuracy:
    case, enforcement, seed = job
    return accuracy(play(enforcement, case, WINDOWS, seed), case.limits, WINDOWS)


def accuracy_rows(found: Mapping[tuple[str, str], Sequence[Accuracy]], goals: Goals) -> Iterator[ResultRow]:
    """Yields the means over seeds."""
    for (case, enforcement), values in found.items():
        for name, shares in (
            ("over-run", [value.overrun for value in values]),
            ("under-use", [value.underuse for value in values]),
            ("all use", [value.total for value in values]),
        ):
            yield goals.value(f"simulated, {case}: {name}, %: {enforcement}", "%", 100.0 * fmean(shares))
