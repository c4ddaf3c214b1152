"""The smooth days at several targets: the attained share, and what it costs.

The target is that of ``slo.target``. A share far above it is money spent for nothing; the goals say
how far above or below it the attained share may be.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fairlead_bench.autoscaler.measurement import FAIRLEAD, AutoscalerCell, indicators, run_scenario, scenario_of
from fairlead_bench.results import ResultRow, load_goals, value_row, write_results

NAME = "autoscaler-targets"
DAYS = ("smooth-chat", "smooth-short", "smooth-mixed")
TARGETS = (0.95, 0.99, 0.999)


def main(arguments: list[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(f"out/bench/{NAME}.json"))
    given = parser.parse_args(arguments)
    rows = [row for day in DAYS for target in TARGETS for row in _rows(day, target, given.seed)]
    write_results(NAME, rows, seed=given.seed, file=given.out)
    return 0


def _rows(day: str, target: float, seed: int) -> Iterator[ResultRow]:
    """Yields the distance to the target in percentage points, and the cost in replica-hours."""
    scenario = scenario_of(day, seed, "")
    scenario = replace(scenario, model=replace(scenario.model, target=target))
    found = indicators(scenario, run_scenario(AutoscalerCell(day, seed, FAIRLEAD), scenario))
    metric = f"{day}, target {100 * target:g} %: attained minus target"
    yield value_row(metric, "points", round(100 * (found["attainment"] - target), 4), load_goals(NAME)[metric])
    yield value_row(f"{day}, target {100 * target:g} %: cost", "replica-hours", round(found["cost"], 2), None)
