"""The missed share that the autoscaler's core predicts, compared with fixed fleets of four plants.

For each plant, traffic, number of replicas and rate:

- Measured: the share of requests that miss a latency target. No controller changes the fleet.
- Derived: the share that the core predicts at this rate and size, with the lengths, cached share
  and speed that it learned from watching.
- Corrected: the same with the factors that the core learned from counted misses.

Fleets that miss 0.1 % to 10 % are judged.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from fairlead_bench.autoscaler.missed_share.fixed_fleet_case import (
    FixedFleetCase,
    FleetComparison,
    committed_rates,
    is_within,
    load_cases,
)
from fairlead_bench.autoscaler.missed_share.outside_fleet import OUTSIDE, compare_outside_fleet
from fairlead_bench.autoscaler.missed_share.prediction import PredictedShare
from fairlead_bench.autoscaler.missed_share.simulated_fleets import (
    AGGREGATED,
    FLEET_SIMULATOR,
    TOKEN_LEVEL,
    compare_simulated_fleet,
)
from fairlead_bench.autoscaler.result_rows import geometric_mean
from fairlead_bench.results import ResultRow, load_goals, ratio_row, value_row, write_results

NAME: Final = "autoscaler-missed-share"
PLANTS: Final = (AGGREGATED, TOKEN_LEVEL, OUTSIDE, FLEET_SIMULATOR)
REPLICAS: Final = (4, 8, 16, 32, 64)
REQUESTS: Final = 30_000
"""A missed share of 0.1 % is 30 requests of these."""
_JUDGED: Final[Mapping[str, Callable[[PredictedShare], float]]] = {
    "derived": lambda predicted: predicted.derived,
    "corrected": lambda predicted: predicted.corrected,
}
_INFORMING: Final[Mapping[str, Callable[[PredictedShare], float]]] = {
    **_JUDGED,
    "budgeted": lambda predicted: predicted.budgeted,
    "sized": lambda predicted: predicted.sized,
}


def compare_fleet(case: FixedFleetCase, *, requests: int, seed: int) -> FleetComparison:
    """Returns what the fleet of a case missed, and what the core predicted."""
    compare = compare_outside_fleet if case.plant == OUTSIDE else compare_simulated_fleet
    return compare(case, requests=requests, seed=seed)


def case_rows(comparisons: Sequence[FleetComparison]) -> Iterator[ResultRow]:
    """Yields two rows for each fleet: predicted ÷ measured share, without and with factors."""
    for one in comparisons:
        for kind, share in _JUDGED.items():
            metric = f"{one.case.describe()}: missed share, {kind} ÷ measured"
            yield ratio_row(metric, "share", share(one.predicted), "measured", one.measured or None, None)


def summary_rows(comparisons: Sequence[FleetComparison]) -> Iterator[ResultRow]:
    """Yields the summary of each plant, with goals.

    Only judged fleets count.
    """
    goals = load_goals(NAME)
    for plant in dict.fromkeys(one.case.plant for one in comparisons):
        judged = [one for one in comparisons if one.case.plant == plant and one.is_judged]
        yield value_row(f"{plant}: fleets judged", "fleets", float(len(judged)), None)
        if not judged:
            continue
        for kind, share in _JUDGED.items():
            for factor in (2, 3):
                within = [is_within(share(one.predicted), one.measured, factor) for one in judged]
                metric = f"{plant}: fleets whose missed share, {kind}, is within a factor of {factor}"
                yield value_row(metric, "of 1", sum(within) / len(within), goals.get(metric))
        for kind, share in _INFORMING.items():
            ratios = [share(one.predicted) / one.measured for one in judged]
            metric = f"{plant}: missed share, {kind} ÷ measured, geometric mean"
            yield value_row(metric, "ratio", geometric_mean(ratios), None)
        errors = [abs(math.log(one.rate_ratio)) for one in judged]
        metric = f"{plant}: error of the rate at which the measured share is predicted, median"
        yield value_row(metric, "of 1", median(errors), None)


def main(arguments: list[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plants", default=",".join(PLANTS))
    parser.add_argument("--replicas", default=",".join(map(str, REPLICAS)))
    parser.add_argument("--requests", type=int, default=REQUESTS, help="that count in each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--out", type=Path, default=Path(f"out/bench/{NAME}.json"))
    given = parser.parse_args(arguments)
    plants, replicas = given.plants.split(","), [int(one) for one in given.replicas.split(",")]
    if unknown := sorted({*plants} - {*PLANTS}):
        parser.error(f"unknown: {', '.join(unknown)}; plants: {', '.join(PLANTS)}")
    cases = load_cases(plants, replicas, committed_rates())
    comparisons = []
    with ProcessPoolExecutor(max(1, given.jobs)) as pool:
        for one in pool.map(partial(compare_fleet, requests=given.requests, seed=given.seed), cases):
            comparisons.append(one)
            print(_describe(one), file=sys.stderr, flush=True)
    rows = [*case_rows(comparisons), *summary_rows(comparisons)]
    more = {"cases": [{**asdict(one), "measured": one.measured, "is_judged": one.is_judged} for one in comparisons]}
    write_results(NAME, rows, seed=given.seed, file=given.out, more=more)
    return 0


def _describe(one: FleetComparison) -> str:
    predicted, measured = one.predicted, max(one.measured, 1e-9)
    return (
        f"{one.case.describe():60} measured {one.measured:7.3%} "
        f"derived {predicted.derived:7.3%} = {predicted.derived / measured:5.2f} × "
        f"corrected {predicted.corrected:7.3%} = {predicted.corrected / measured:5.2f} × "
        f"rate {one.rate_ratio:.3f} learning {predicted.learning:.0%}"
    )
