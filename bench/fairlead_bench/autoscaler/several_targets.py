"""The smooth days at several targets: the attained share, and what it costs.

The target is that of ``slo.target``. A share far above it is money spent for nothing; the goals say
how far above or below it the attained share may be.
"""

from collections.abc import Iterator
from dataclasses import replace

from fairlead_bench.autoscaler.measurement import FAIRLEAD, AutoscalerCell, indicators, run_scenario, scenario_of
from fairlead_bench.results import NO_GOALS, ResultRow, load_goals, parse_options, write_results

NAME = "autoscaler-targets"
DAYS = ("smooth-chat", "smooth-short", "smooth-mixed")
TARGETS = (0.95, 0.99, 0.999)


def main(arguments: list[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    given = parse_options(NAME, __doc__, arguments, seed=1)
    rows = [row for day in DAYS for target in TARGETS for row in _rows(day, target, given.seed)]
    write_results(NAME, rows, seed=given.seed, file=given.out)
    return 0


def _rows(day: str, target: float, seed: int) -> Iterator[ResultRow]:
    """Yields the distance to the target in percentage points, and the cost in replica-hours."""
    scenario = scenario_of(day, seed, "")
    scenario = replace(scenario, model=replace(scenario.model, target=target))
    found = indicators(scenario, run_scenario(AutoscalerCell(day, seed, FAIRLEAD), scenario))
    metric = f"{day}, target {100 * target:g} %: attained minus target"
    yield load_goals(NAME).value(metric, "points", round(100 * (found["attainment"] - target), 4))
    yield NO_GOALS.value(f"{day}, target {100 * target:g} %: cost", "replica-hours", round(found["cost"], 2))
