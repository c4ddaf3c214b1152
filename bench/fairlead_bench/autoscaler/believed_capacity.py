"""The capacity that the core believes, compared with the capacity that fixed fleets have.

For each engine class, traffic, load policy and number of replicas:

- Measured: the largest requests per second of each replica at which 99 % meet the SLO.
- Believed: ``capacity_requests_per_second`` of the core's plans at that rate. The core watches the
  fixed fleet, and its plans are not applied. The median of the last half of the run counts.

Above 1 the core orders too few replicas, below 1 too many.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from fairlead_autoscaler.core import ModelSpec, Observation, ScalingCore, ScalingPlan
from fairlead_bench.autoscaler.result_rows import geometric_mean
from fairlead_bench.results import ResultRow, ratio_row, value_row, write_results
from fairlead_sim.autoscaling.capacity.fixed_fleet import (
    CASES,
    CapacityCase,
    count_misses,
    fixed_fleet_scenario,
    measure_largest_rate,
)
from fairlead_sim.autoscaling.closed_loop import run_controller
from fairlead_sim.autoscaling.routing.load_balancing import LoadPolicy

NAME = "autoscaler-capacity"
REPLICAS = (4, 8, 16, 32, 64)
MISS_SHARE = 0.01
_CAPACITY_INPUT = "capacity_requests_per_second"


class WatchingController:
    """A controller whose core sees everything and decides nothing.

    believed: the core's capacity of a replica of the first pool, in requests per second, by tick.
    """

    def __init__(self, model: ModelSpec) -> None:
        self._core = ScalingCore(model)
        self._pool = model.pools[0].name
        self.believed: list[float] = []

    def step(self, observation: Observation) -> ScalingPlan:
        """Returns an empty plan."""
        plan = self._core.step(observation).pools.get(self._pool)
        given = None if plan is None else plan.inputs.get(_CAPACITY_INPUT)
        if given is not None and given.value is not None:
            self.believed.append(given.value)
        return ScalingPlan({})


@dataclass(frozen=True, slots=True)
class CapacityComparison:
    """One fixed fleet: its measured and believed capacity, in requests per second of each replica.

    missed: the share (0..1) that missed the SLO while the core watched.
    """

    replicas: int
    measured: float
    believed: float | None
    missed: float

    @property
    def ratio(self) -> float | None:
        """Believed ÷ measured capacity; None if either is unknown."""
        return None if self.believed is None or not self.measured else self.believed / self.measured


def compare_capacity(case: CapacityCase, replicas: int, *, requests: int, seed: int) -> CapacityComparison:
    """Returns the capacities of ``replicas`` of the case.

    requests: those that count in each run, about.
    """
    measured = measure_largest_rate(case, replicas, miss_share=MISS_SHARE, requests=requests, seed=seed)
    if not measured:
        return CapacityComparison(replicas, 0.0, None, 1.0)
    scenario = fixed_fleet_scenario(case, replicas, measured * replicas, requests=requests, seed=seed)
    controller = WatchingController(scenario.model)
    outcome = run_controller(scenario, controller)
    later = controller.believed[len(controller.believed) // 2 :]
    missed = count_misses(outcome.request_table, scenario).share
    return CapacityComparison(replicas, measured, median(later) if later else None, missed)


def capacity_rows(case: CapacityCase, comparisons: Sequence[CapacityComparison]) -> Iterator[ResultRow]:
    """Yields believed ÷ measured capacity of each fleet, and the geometric mean of all."""
    name = f"{case.name}, {describe_policy(case.load_policy)}"
    for one in comparisons:
        metric = f"{name}, {one.replicas} replicas: capacity believed ÷ measured"
        yield ratio_row(metric, "requests/s", one.believed, "measured", one.measured or None, None)
    ratios = [one.ratio for one in comparisons if one.ratio is not None]
    yield value_row(f"{name}: capacity believed ÷ measured, geometric mean", "ratio", geometric_mean(ratios), None)


def describe_policy(policy: LoadPolicy) -> str:
    """Returns the name of a load policy in rows and options, like ``prompt-work``."""
    return policy.name.lower().replace("_", "-")


def main(arguments: list[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    policies = {describe_policy(policy): policy for policy in LoadPolicy}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help="engine class and traffic")
    parser.add_argument("--policies", default=",".join(policies))
    parser.add_argument("--replicas", default=",".join(map(str, REPLICAS)))
    parser.add_argument("--requests", type=int, default=20_000, help="that count in each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(f"out/bench/{NAME}.json"))
    given = parser.parse_args(arguments)
    names, policy_names = given.cases.split(","), given.policies.split(",")
    if unknown := [*({*names} - {*CASES}), *({*policy_names} - {*policies})]:
        parser.error(
            f"unknown: {', '.join(sorted(unknown))}; cases: {', '.join(CASES)}; policies: {', '.join(policies)}"
        )
    rows: list[ResultRow] = []
    for name in names:
        for policy_name in policy_names:
            case = replace(CASES[name], load_policy=policies[policy_name])
            comparisons = []
            for replicas in map(int, given.replicas.split(",")):
                comparisons.append(compare_capacity(case, replicas, requests=given.requests, seed=given.seed))
                print(f"{name}, {policy_name}: {comparisons[-1]}", file=sys.stderr, flush=True)
            rows += capacity_rows(case, comparisons)
    write_results(NAME, rows, seed=given.seed, file=given.out)
    return 0
