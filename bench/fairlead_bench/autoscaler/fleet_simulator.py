"""The autoscaler and presets of others in the fleet simulator: caches and the gateway's router.

    python -m fairlead_bench autoscaler-fleet [--scenarios NAME,…] [--presets NAME,…]

The scenarios are those of the autoscaler's benchmark without prefill and decode pools, which the
fleet simulator cannot run. Presets do not run on days. Each runs at its usual value and at those of
``knob_values``. The best of them keeps 99 % in most scenarios, and then costs least.

The offline optimum is bounded from above (``scaled_schedule``). So the cost ÷ the bound is at most
the cost ÷ the optimum. A bound takes a dozen runs. That of a day is the cheapest of the schedules
with ``DAY_FACTORS`` that keeps the target, unmixed; they run side by side.
"""

import argparse
import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fairlead_autoscaler
from fairlead.runtime.compiled_build import sources_digest
from fairlead_bench.autoscaler.benchmark import (
    COMPARED_PRESETS,
    HARD,
    METRICS_OUTAGES,
    SMOOTH,
    TunedPreset,
    best_knob,
    costs_where_both_meet,
    geometric_mean,
    meets_slo,
)
from fairlead_bench.autoscaler.measurement import (
    FAIRLEAD,
    AutoscalerCell,
    indicators,
    knob_values,
    run_scenario,
    scenario_of,
)
from fairlead_bench.autoscaler.offline_optimum import FILE as KNOWN_OPTIMA
from fairlead_bench.measurement_cache import Measured, MeasurementCache, print_progress
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results
from fairlead_sim.autoscalers import PRESETS
from fairlead_sim.autoscaling.closed_loop import run_schedule
from fairlead_sim.autoscaling.fleet_plant.plant import FleetPlant
from fairlead_sim.autoscaling.fleet_plant.scaled_schedule import DEFAULT_RUNS, scale_steps, scaled_schedule_bound
from fairlead_sim.autoscaling.offline_optimum import OptimumCache, OptimumSchedule, search_schedule
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.compiled import package_folders

NAME = "autoscaler-fleet"
BOUND = "bound of the offline optimum"
JUDGED_SCENARIOS = (*SMOOTH, *(name for name in HARD if name != "mix-move"))
FLEET_SCENARIOS = (*JUDGED_SCENARIOS, *METRICS_OUTAGES)
RunController = tuple[str, float | None]
"""A controller, and the value of a preset's first parameter."""
DAY_FACTORS = (0.85, 0.94, 1.0, 1.06)
"""Factors on the counts of a day's schedule."""
_SEARCH_RUNS = 60
"""Runs of the aggregated plant, where no schedule is known that could be scaled."""


@dataclass(frozen=True, slots=True)
class FleetCell:
    """One controller, or the bound of the optimum, in one scenario.

    - knob: of a preset's first parameter; the factor of a day's bound.
    - bound_runs: the runs of a bound's search; 0 with a factor.
    """

    scenario: str
    seed: int
    controller: str
    knob: float | None = None
    bound_runs: int = 0
    traces: str = ""


def main(arguments: Sequence[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    given = parse_options(
        NAME,
        "The autoscaler and presets of others in the fleet simulator.",
        arguments,
        scenarios=list(FLEET_SCENARIOS),
        presets=(",".join(COMPARED_PRESETS), "presets to compare with; empty for none"),
        no_bound=(False, "search for no bound of the optimum"),
        seed=1,
        traces=(Path, "a folder with the published traces; else traffic of their shape"),
        jobs=min(os.cpu_count() or 1, 2),
    )
    traces = "" if given.traces is None or not given.traces.is_dir() else str(given.traces)
    cells = MeasurementCache(
        given.out.with_name(f"{NAME}-cells.jsonl"), measure_cell, source_digest, jobs=given.jobs, said=print_progress
    )
    wanted = {
        controller: {
            scenario: FleetCell(scenario, given.seed, *controller, bound_runs, traces)
            for scenario, bound_runs in scenarios.items()
        }
        for controller, scenarios in select_runs(given).items()
    }
    by_scenario = [scenarios[name] for name in given.scenarios for scenarios in wanted.values() if name in scenarios]
    found = cells(by_scenario)
    measured = {
        controller: {name: found[cell] for name, cell in scenarios.items()} for controller, scenarios in wanted.items()
    }
    bounds = cheapest_bounds(measured)
    tables = name_tables({key: table for key, table in measured.items() if key[0] != BOUND})
    more: dict[str, Any] = {
        "traces": traces != "",
        "bounds": bounds,
        "table": tables,
    }
    write_results(NAME, list(fleet_rows(tables, bounds)), seed=given.seed, file=given.out, more=more)
    return 0


def measure_cell(cell: FleetCell) -> Measured:
    """Returns the indicators of a cell, the share of cached tokens and the processor seconds.

    Of a bound: its share and its cost.
    """
    scenario = scenario_of(cell.scenario, cell.seed, cell.traces)
    gc.freeze()  # the requests of a day are looked through again and again otherwise
    begun = time.process_time()
    if cell.controller == BOUND:
        bound = _bound(scenario, cell)
        return {"attainment": bound.attainment, "cost": bound.cost, "seconds": time.process_time() - begun}
    plant = FleetPlant(scenario)
    outcome = run_scenario(
        AutoscalerCell(cell.scenario, cell.seed, cell.controller, cell.knob, cell.traces), scenario, plant
    )
    seconds = time.process_time() - begun
    return {**indicators(scenario, outcome), "cached_share": plant.cached_share, "seconds": seconds}


def source_digest(cell: object) -> str:
    return _source_digest()


def fleet_rows(tables: Mapping[str, Mapping[str, Measured]], bounds: Mapping[str, Measured]) -> Iterator[ResultRow]:
    """Yields the rows of the core with their goals, and of each preset."""
    goals, ours = load_goals(NAME), tables[FAIRLEAD]

    row = goals.value
    for name, cell in ours.items():
        yield row(f"{name}: within the SLO", "share", cell["attainment"])
        if name in bounds:
            metric = f"{name}: cost ÷ bound of the optimum"
            yield goals.ratio(metric, "money", cell["cost"], BOUND, bounds[name]["cost"])
        if name in METRICS_OUTAGES:
            metric = f"{name}: within the SLO in a window and 5 minutes after, least"
            yield row(metric, "share", cell["window_attainment"])
            yield row(f"{name}: replicas removed in a window and 5 minutes after", "replicas", cell["window_away"])
        yield row(f"{name}: cached prompt tokens", "share", cell["cached_share"])
    ratios = [ours[name]["cost"] / bounds[name]["cost"] for name in JUDGED_SCENARIOS if name in ours and name in bounds]
    yield row("cost ÷ bound of the optimum, geometric mean", "ratio", geometric_mean(ratios))
    for name, table in tables.items():
        if name != FAIRLEAD:
            compared = {scenario: ours[scenario] for scenario in table}
            runs, value, other = costs_where_both_meet(compared, table)
            metric = f"{name}: cost where both keep 99 % ({runs} of {len(table)} runs): {FAIRLEAD} ÷ it"
            yield goals.ratio(metric, "money", value, name, other)


def name_tables(measured: Mapping[RunController, Mapping[str, Measured]]) -> dict[str, Mapping[str, Measured]]:
    """Returns the figures of Fairlead, and of each preset at its best and at its usual value."""
    tables = {FAIRLEAD: measured[FAIRLEAD, None]}
    by_knob: dict[str, dict[float, Mapping[str, Measured]]] = {}
    for (controller, knob), table in measured.items():
        if knob is not None:
            by_knob.setdefault(controller, {})[knob] = table
    for name, found in by_knob.items():
        best, usual = best_knob(found), PRESETS[name].parameters[0].default
        tables[TunedPreset(name, best, True).name] = found[best]
        tables[TunedPreset(name, usual, False).name] = found[usual]
    return tables


def select_runs(given: argparse.Namespace) -> dict[RunController, dict[str, int]]:
    """Returns the runs of a bound by scenario, of each controller and value; 0 of a controller."""
    selection: dict[RunController, dict[str, int]] = {(FAIRLEAD, None): dict.fromkeys(given.scenarios, 0)}
    hours = [name for name in given.scenarios if name not in SMOOTH]
    if not given.no_bound:
        selection[BOUND, None] = dict.fromkeys(hours, DEFAULT_RUNS)
        days = dict.fromkeys([name for name in given.scenarios if name in SMOOTH], 0)
        selection |= {(BOUND, factor): days for factor in DAY_FACTORS}
    for name in filter(None, given.presets.split(",")):
        selection |= {(name, knob): dict.fromkeys(hours, 0) for knob in knob_values(name)}
    return {controller: scenarios for controller, scenarios in selection.items() if scenarios}


def cheapest_bounds(measured: Mapping[RunController, Mapping[str, Measured]]) -> dict[str, Measured]:
    """Returns the cheapest bound of each scenario that keeps the target, with its number of runs.

    A scenario without one is left out.
    """
    found: dict[str, Measured] = {}
    tables = {factor: table for (controller, factor), table in measured.items() if controller == BOUND}
    for name in {name: None for table in tables.values() for name in table}:
        tried = {factor: table[name] for factor, table in tables.items() if name in table}
        kept = {factor: cell for factor, cell in tried.items() if meets_slo(cell)}
        if kept:
            factor = min(kept, key=lambda factor: kept[factor]["cost"])
            runs = {"runs": DEFAULT_RUNS} if factor is None else {"runs": len(tried), "factor": factor}
            found[name] = {**kept[factor], **runs}
    return found


def _bound(scenario: AutoscalingScenario, cell: FleetCell) -> OptimumSchedule:
    known = OptimumCache(KNOWN_OPTIMA).get(scenario)
    steps = (known or search_schedule(scenario, runs=_SEARCH_RUNS)).steps
    if cell.knob is None:
        return scaled_schedule_bound(scenario, steps, runs=cell.bound_runs)
    scaled = scale_steps(scenario, steps, cell.knob)
    outcome = run_schedule(scenario, scaled, FleetPlant(scenario, foresight=True))
    return OptimumSchedule(scaled, outcome.attainment, outcome.cost)


@cache
def _source_digest() -> str:
    return sources_digest([*package_folders(), *map(Path, fairlead_autoscaler.__path__)])
