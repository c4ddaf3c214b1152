"""The autoscaler and presets of others in the fleet simulator: caches and the gateway's router.

    python -m fairlead_bench autoscaler-fleet [--scenarios NAME,…] [--presets NAME,…]

The scenarios are those of the autoscaler's benchmark without prefill and decode pools, which the
fleet simulator cannot run. Presets have their usual value, and do not run on days.

The offline optimum is bounded from above (``scaled_schedule``). So the cost ÷ the bound is at most
the cost ÷ the optimum. A bound takes a dozen runs, that of a day six: a factor within 3 %, unmixed.
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
from fairlead_autoscaler.presets import PRESETS
from fairlead_bench.autoscaler.indicators import indicators
from fairlead_bench.autoscaler.measurement import FAIRLEAD, AutoscalerCell, run_scenario, scenario_of
from fairlead_bench.autoscaler.offline_optimum import FILE as KNOWN_OPTIMA
from fairlead_bench.autoscaler.result_rows import (
    HARD,
    METRICS_OUTAGES,
    SMOOTH,
    TunedPreset,
    costs_where_both_meet,
    geometric_mean,
)
from fairlead_bench.autoscaler.unseen_seeds import COMPARED_PRESETS
from fairlead_bench.measurement_cache import Measured, MeasurementCache, print_progress
from fairlead_bench.results import ResultRow, load_goals, ratio_row, value_row, write_results
from fairlead_sim.autoscaling.fleet_plant.plant import FleetPlant
from fairlead_sim.autoscaling.fleet_plant.scaled_schedule import DEFAULT_RUNS, scaled_schedule_bound
from fairlead_sim.autoscaling.offline_optimum import search_schedule
from fairlead_sim.autoscaling.optimum_cache import OptimumCache
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.compiled import package_folders

NAME = "autoscaler-fleet"
BOUND = "bound of the offline optimum"
JUDGED_SCENARIOS = (*SMOOTH, *(name for name in HARD if name != "mix-move"))
FLEET_SCENARIOS = (*JUDGED_SCENARIOS, *METRICS_OUTAGES)
_DAY_RUNS = 6
_SEARCH_RUNS = 60
"""Runs of the aggregated plant, where no schedule is known that could be scaled."""


@dataclass(frozen=True, slots=True)
class FleetCell:
    """One controller, or the bound of the optimum, in one scenario.

    - knob: of a preset's first parameter.
    - bound_runs: the runs of a bound's search.
    """

    scenario: str
    seed: int
    controller: str
    knob: float | None = None
    bound_runs: int = 0
    traces: str = ""


def main(arguments: Sequence[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    parser = argparse.ArgumentParser(description="The autoscaler and presets of others in the fleet simulator.")
    parser.add_argument("--scenarios", type=_scenario_names, default=list(FLEET_SCENARIOS), metavar="NAME,…")
    parser.add_argument("--presets", default=",".join(COMPARED_PRESETS), help="presets to compare with; empty for none")
    parser.add_argument("--no-bound", action="store_true", help="search for no bound of the optimum")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--traces", type=Path, help="a folder with the published traces; else traffic of their shape")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--out", type=Path, default=Path(f"out/bench/{NAME}.json"))
    given = parser.parse_args(arguments)
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
    tables = {
        _title(*controller): {name: found[cell] for name, cell in scenarios.items()}
        for controller, scenarios in wanted.items()
    }
    bounds = tables.pop(BOUND, {})
    more: dict[str, Any] = {
        "traces": traces != "",
        "bounds": {name: {**cell, "runs": _bound_runs(name)} for name, cell in bounds.items()},
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
        bound = scaled_schedule_bound(scenario, _aggregated_schedule(scenario), runs=cell.bound_runs)
        return {"attainment": bound.attainment, "cost": bound.cost, "seconds": time.process_time() - begun}
    plant = FleetPlant(scenario)
    outcome = run_scenario(
        AutoscalerCell(cell.scenario, cell.seed, cell.controller, cell.knob, cell.traces), scenario, plant
    )
    seconds = time.process_time() - begun
    return {**indicators(scenario, outcome), "cached_share": plant.cached_share, "seconds": seconds}


def source_digest(cell: FleetCell) -> str:
    """Returns a digest of the sources of the simulator, its router and the controllers."""
    return _source_digest()


def fleet_rows(tables: Mapping[str, Mapping[str, Measured]], bounds: Mapping[str, Measured]) -> Iterator[ResultRow]:
    """Yields the rows of the core with their goals, and of each preset."""
    goals, ours = load_goals(NAME), tables[FAIRLEAD]

    def row(metric: str, unit: str, value: float | None) -> ResultRow:
        return value_row(metric, unit, value, goals.get(metric))

    for name, cell in ours.items():
        yield row(f"{name}: within the SLO", "share", cell["attainment"])
        if name in bounds:
            metric = f"{name}: cost ÷ bound of the optimum"
            yield ratio_row(metric, "money", cell["cost"], BOUND, bounds[name]["cost"], goals.get(metric))
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
            yield ratio_row(metric, "money", value, name, other, None)


def _scenario_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in FLEET_SCENARIOS]:
        raise argparse.ArgumentTypeError(f"no scenario {', '.join(unknown)}; known are {', '.join(FLEET_SCENARIOS)}")
    return names


def select_runs(given: argparse.Namespace) -> dict[tuple[str, float | None], dict[str, int]]:
    """Returns the runs of a bound by scenario, of each (controller, value); 0 of a controller."""
    selection: dict[tuple[str, float | None], dict[str, int]] = {(FAIRLEAD, None): dict.fromkeys(given.scenarios, 0)}
    if not given.no_bound:
        selection[BOUND, None] = {name: _bound_runs(name) for name in given.scenarios}
    for name in filter(None, given.presets.split(",")):
        usual = PRESETS[name].parameters[0].default
        selection[name, usual] = {scenario: 0 for scenario in given.scenarios if scenario not in SMOOTH}
    return {controller: scenarios for controller, scenarios in selection.items() if scenarios}


def _title(controller: str, knob: float | None) -> str:
    return controller if knob is None else TunedPreset(controller, knob, False).name


def _bound_runs(scenario: str) -> int:
    return _DAY_RUNS if scenario in SMOOTH else DEFAULT_RUNS


def _aggregated_schedule(scenario: AutoscalingScenario) -> tuple[tuple[float, Mapping[str, int]], ...]:
    """Returns the cheapest known schedule of the aggregated plant; searches if there is none."""
    known = OptimumCache(KNOWN_OPTIMA).get(scenario)
    return (known or search_schedule(scenario, runs=_SEARCH_RUNS)).steps


@cache
def _source_digest() -> str:
    return sources_digest([*package_folders(), *map(Path, fairlead_autoscaler.__path__)])
