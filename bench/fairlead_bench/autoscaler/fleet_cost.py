"""Cost of an autoscaled fleet whose drained engines give their streams away, and of a static fleet.

    python -m fairlead_bench autoscaler-fleet-cost [--scenarios NAME,…] [--jobs 2]

The scenarios and the plant are those of `fleet_simulator`. Cost is replica-seconds from the order
to the end. Fairlead's core scales, and three rules move streams:

- *none*: an engine that drains ends with its longest stream.
- *moves*: the gateway's own decision, as in the drain rows of `balance`.
- *Llumnix' rule*: its migrations run all the time, and drained engines come first.

The static fleet is the smallest with which as many requests are within the SLO as with *moves*, in
the same scenario and seed. It is found by bisection; larger fleets are taken to be no worse.

Three judged scenarios are left out by default. Fleets of two kinds of engines have more than one
size, and the runs of `failures` and `smooth-short` take longest.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fairlead_bench.autoscaler.benchmark import geometric_mean
from fairlead_bench.autoscaler.fleet_simulator import source_digest
from fairlead_bench.autoscaler.measurement import FAIRLEAD, AutoscalerCell, run_scenario, scenario_of
from fairlead_bench.measurement_cache import Measured, MeasurementCache, print_progress
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_bench.routing.balance import drain_moves, llumnix_moves
from fairlead_gateway.proxy.stream_moves import MOVE_INTERVAL_SECONDS
from fairlead_sim.autoscaling.closed_loop import run_schedule
from fairlead_sim.autoscaling.fleet_plant.conversations import FleetPlantOptions
from fairlead_sim.autoscaling.fleet_plant.plant import FleetPlant
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.gateways.stream_balance import BalanceOptions

NAME = "autoscaler-fleet-cost"
SCENARIOS = ("noisy-hour", "drift", "slow-engine", "long-prompts", "smooth-chat")
RULES: Mapping[str, BalanceOptions | None] = {
    "none": None,
    "moves": BalanceOptions(drain_moves, MOVE_INTERVAL_SECONDS, only_drains=True),
    "Llumnix' rule": BalanceOptions(llumnix_moves, MOVE_INTERVAL_SECONDS),
}


@dataclass(frozen=True, slots=True)
class CostCell:
    """One run of a scenario: under the autoscaler with a rule of moves, or as a static fleet.

    size: of the static fleet; 0 with the autoscaler.
    """

    scenario: str
    seed: int
    rule: str = ""
    size: int = 0
    traces: str = ""


def main(arguments: Sequence[str]) -> int:
    """Returns 0: the benchmark measures, and goals that do not hold stay in the table."""
    given = parse_options(
        NAME,
        "Cost of an autoscaled fleet with moves of streams, and of static fleets.",
        arguments,
        scenarios=list(SCENARIOS),
        seed=1,
        traces=(Path, "a folder with the published traces; else traffic of their shape"),
        jobs=min(os.cpu_count() or 1, 2),
    )
    traces = "" if given.traces is None or not given.traces.is_dir() else str(given.traces)
    cells = MeasurementCache(
        given.out.with_name(f"{NAME}-cells.jsonl"), measure, source_digest, jobs=given.jobs, said=print_progress
    )
    found: dict[str, dict[str, Measured]] = {}
    for name in given.scenarios:
        runs = {rule: CostCell(name, given.seed, rule, traces=traces) for rule in RULES}
        measured = cells(list(runs.values()))
        by_rule = {rule: measured[cell] for rule, cell in runs.items()}

        def static(size: int, name: str = name) -> Measured:
            cell = CostCell(name, given.seed, size=size, traces=traces)
            return cells([cell])[cell]

        found[name] = by_rule | {"static": smallest_static(static, by_rule["moves"])}
    write_results(
        NAME, list(cost_rows(load_goals(NAME), found)), seed=given.seed, file=given.out, more={"cells": found}
    )
    return 0


def measure(cell: CostCell) -> Measured:
    """Returns share, cost, mean and largest size, and moves of a run."""
    scenario = scenario_of(cell.scenario, cell.seed, cell.traces)
    if cell.size:
        scenario = static_scenario(scenario, cell.size)
        plant = FleetPlant(scenario)
        outcome = run_schedule(scenario, (), plant)
    else:
        plant = FleetPlant(scenario, FleetPlantOptions(moves=RULES[cell.rule]))
        outcome = run_scenario(AutoscalerCell(cell.scenario, cell.seed, FAIRLEAD, None, cell.traces), scenario, plant)
    return {
        "attainment": outcome.attainment,
        "cost": outcome.cost,
        "mean": sum(outcome.replica_hours.values()) * 3600.0 / scenario.seconds,
        "most": float(cell.size or max(sum(sample.ready) for sample in outcome.samples)),
        "moves": float(plant.moves),
        "lost": float(outcome.lost),
    }


def static_scenario(scenario: AutoscalingScenario, size: int) -> AutoscalingScenario:
    """Returns the scenario with a pool of this size from the beginning to the end."""
    setup = scenario.pools[0]
    facts = replace(setup.facts, minimum=size, maximum=size)
    return replace(scenario, pools=(replace(setup, facts=facts, initial=size),))


def smallest_static(measure_size: Callable[[int], Measured], wanted: Measured) -> Measured:
    """Returns the figures of the smallest static fleet that keeps the wanted share."""
    too_small, size = int(wanted["mean"]) - 1, int(wanted["most"])
    while (best := measure_size(size))["attainment"] < wanted["attainment"]:
        too_small, size = size, size + 2
    while size - too_small > 1:
        middle = (size + too_small) // 2
        tried = measure_size(middle)
        if tried["attainment"] >= wanted["attainment"]:
            size, best = middle, tried
        else:
            too_small = middle
    return best


def cost_rows(goals: Goals, found: Mapping[str, Mapping[str, Measured]]) -> Iterator[ResultRow]:
    """Yields the rows of each scenario, and the means over them."""
    for name, by_rule in found.items():
        static = by_rule["static"]
        yield goals.value(f"{name}: replicas of the static fleet", "replicas", static["most"])
        for rule in RULES:
            cell = by_rule[rule]
            metric = f"{name}: cost ÷ static fleet of the same share: {rule}"
            yield goals.ratio(metric, "money", cell["cost"], "static", static["cost"])
            yield goals.value(f"{name}: within the SLO: {rule}", "share", cell["attainment"])
        yield goals.value(f"{name}: moves", "", by_rule["moves"]["moves"])
        none = by_rule["none"]["cost"]
        for rule in [rule for rule in RULES if rule != "none"]:
            yield goals.ratio(f"{name}: cost: {rule} ÷ none", "money", by_rule[rule]["cost"], "none", none)
    for rule in RULES:
        ratios = [cells[rule]["cost"] / cells["static"]["cost"] for cells in found.values()]
        yield goals.value(f"cost ÷ static fleet, geometric mean: {rule}", "ratio", geometric_mean(ratios))
