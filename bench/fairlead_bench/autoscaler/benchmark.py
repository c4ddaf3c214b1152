"""The autoscaler benchmark's command line. A missed goal stays in the table and fails nothing."""

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from fairlead_bench.autoscaler.indicators import indicators
from fairlead_bench.autoscaler.measurement import (
    FAIRLEAD,
    AutoscalerCell,
    knob_values,
    measure,
    scenario_of,
    source_digest,
    unservable_of,
)
from fairlead_bench.autoscaler.result_rows import (
    ALL_SCENARIOS,
    HARD,
    METRICS_OUTAGES,
    NAME,
    UNSTABLE_PRESETS,
    TunedPreset,
    best_knob,
    comparison_rows,
    crowded_rows,
    fairlead_rows,
    simulator_rows,
    tune,
)
from fairlead_bench.autoscaler.selected_scenarios import run_selected, scenario_names
from fairlead_bench.measurement_cache import Measured, MeasurementCache, print_progress
from fairlead_bench.results import ResultRow, write_results
from fairlead_sim.autoscalers import PRESETS
from fairlead_sim.autoscaling import traffic as loads
from fairlead_sim.autoscaling.closed_loop import ScheduleController, run_controller, run_schedule
from fairlead_sim.autoscaling.offline_optimum import OptimumSchedule as Oracle
from fairlead_sim.autoscaling.offline_optimum import replay_schedule, search_schedule
from fairlead_sim.autoscaling.optimum_cache import OptimumCache
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind, PlantFaults
from fairlead_sim.autoscaling.scenarios import smooth_chat, step_cold
from fairlead_sim.autoscaling.unservable_requests import servable_share

ORACLES = Path(__file__).with_name("offline_optima.json")
SEARCHED = (*HARD, *METRICS_OUTAGES)
"""Scenarios on which a preset's best knob is searched: all compared ones but the days."""
MILLION_A_DAY = 11.6
ByKnob = dict[float, Mapping[str, Measured]]
TARGET = 0.99


def main(arguments: list[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    parser = argparse.ArgumentParser(
        description="The autoscaler and the presets of others in the closed-loop simulator."
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--traces", type=Path, help="a folder with the published traces; else traffic of their shape")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--presets", default=",".join(PRESETS), help="presets to compare with; empty for none")
    parser.add_argument("--out", type=Path, help="default: a file in out/bench named after the run")
    selection = parser.add_argument_group("selection", "with one of these, a table without goals")
    selection.add_argument(
        "--scenarios", type=scenario_names, metavar="NAME,…", help="names, or the groups reference, wider and all"
    )
    seeds = selection.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], metavar="N,…")
    seeds.add_argument("--judging", action="store_true", help="the 20 seeds of judging_seeds.json, once at the end")
    selection.add_argument(
        "--search-optima", type=int, default=0, metavar="RUNS", help="search for unknown offline optima"
    )
    selection.add_argument(
        "--optima", type=Path, default=ORACLES, metavar="FILE", help="known offline optima; new ones are added"
    )
    given = parser.parse_args(arguments)
    names = [name for name in given.presets.split(",") if name]
    if unknown := set(names) - set(PRESETS):
        parser.error(f"--presets: there is none called {', '.join(sorted(unknown))}; there are {', '.join(PRESETS)}")
    is_selected = bool(given.scenarios or given.seeds or given.judging)
    suffix = "-judging" if given.judging else "-selected" if is_selected else ""
    given.out = given.out or Path(f"out/bench/{NAME}{suffix}.json")
    if is_selected:
        run_selected(given, names)
        return 0
    begun, load_average = time.monotonic(), [os.getloadavg()[0]]
    bench = AutoscalerBenchmark(given)
    found = bench.cells([TunedPreset(FAIRLEAD, 0.0, True)], ALL_SCENARIOS)[0]
    others, searched = bench.presets(names)
    ourselves = {scenario: found[scenario] for scenario in SEARCHED}
    chosen_anew = [tune(name, ourselves, by_knob) for name, by_knob in searched.items()]
    rows: list[ResultRow] = [
        *fairlead_rows(found, bench.costs),
        *crowded_rows(bench.crowded()),
        *comparison_rows(found, others),
        *chosen_anew,
        *_plant_rows(),
    ]
    table = {FAIRLEAD: found} | {chosen.name: cells for chosen, cells in others.items()}
    load_average.append(os.getloadavg()[0])
    more: dict[str, Any] = {
        "traces": bench.traces != "",
        "oracles": {name: bench.oracle_cell(name) for name in bench.oracles},
        "table": {
            name: {scenario: _cell(cell, bench.costs.get(scenario)) for scenario, cell in cells.items()}
            for name, cells in table.items()
        },
        "minutes": (time.monotonic() - begun) / 60.0,
    }
    write_results(NAME, rows, seed=given.seed, file=given.out, load_average=load_average, more=more)
    return 0


class AutoscalerBenchmark:
    """One run's scenarios: the cells that were measured, and the oracle of each, replayed in the
    plant as it is now."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._seed: int = given.seed
        self.traces = "" if given.traces is None or not given.traces.is_dir() else str(given.traces)
        self._lab = MeasurementCache(
            given.out.with_name(f"{NAME}-cells.jsonl"), measure, source_digest, jobs=given.jobs, said=print_progress
        )
        self.oracles = {name: self._oracle(name) for name in ALL_SCENARIOS if name not in METRICS_OUTAGES}
        self.costs = {name: one.cost for name, one in self.oracles.items()}

    def _oracle(self, name: str) -> Oracle:
        """Returns the stored schedule if it still keeps the target.

        Otherwise a new one comes from a brief search and is not stored.
        """
        scenario = scenario_of(name, self._seed, self.traces)
        known = OptimumCache(ORACLES).get(scenario)
        if known is not None:
            known = replay_schedule(scenario, known.steps)
            if known.attainment >= TARGET:
                return known
        print_progress(
            f"{name}: no offline optimum is kept for this load; "
            "fairlead_bench.autoscaler.offline_optimum searches longer"
        )
        return search_schedule(scenario, runs=60)

    def oracle_cell(self, name: str) -> dict[str, float]:
        """Returns the figures of an oracle, without the same requests as those of controllers."""
        one, scenario = self.oracles[name], scenario_of(name, self._seed, self.traces)
        unservable = unservable_of(name, self._seed, self.traces, False)
        servable = servable_share(run_schedule(scenario, one.steps), unservable)
        return {
            "cost": one.cost,
            "attainment": one.attainment,
            "servable": round(servable.share, 5),
            "unservable": servable.unservable,
        }

    def cells(self, controllers: Sequence[TunedPreset], scenarios: Sequence[str]) -> list[Mapping[str, Measured]]:
        """Figures by scenario, of each controller. Cells of one scenario lie together: a process
        keeps the last one's load."""

        def cell(one: TunedPreset, scenario: str) -> AutoscalerCell:
            knob = None if one.preset == FAIRLEAD else one.knob
            return AutoscalerCell(scenario, self._seed, one.preset, knob, self.traces)

        found = self._lab([cell(one, scenario) for scenario in scenarios for one in controllers])
        return [{scenario: found[cell(one, scenario)] for scenario in scenarios} for one in controllers]

    def crowded(self) -> Mapping[str, Measured]:
        """Ours on engines that preempt, by scenario."""
        cells = {
            name: AutoscalerCell(name, self._seed, FAIRLEAD, None, self.traces, preempting=True)
            for name in UNSTABLE_PRESETS
        }
        found = self._lab(list(cells.values()))
        return {name: found[cell] for name, cell in cells.items()}

    def presets(self, names: Sequence[str]) -> tuple[dict[TunedPreset, Mapping[str, Measured]], dict[str, ByKnob]]:
        """Returns each preset at its best and its fixed value in every scenario.

        The figures of the search for the best value are part of the result.
        """
        tried = [TunedPreset(name, knob, True) for name in names for knob in knob_values(name)]
        searched: dict[str, ByKnob] = {name: {} for name in names}
        for one, cells in zip(tried, self.cells(tried, SEARCHED), strict=True):
            searched[one.preset][one.knob] = cells
        chosen: list[TunedPreset] = []
        for name in names:
            chosen.append(TunedPreset(name, best_knob(searched[name]), True))
            chosen.append(TunedPreset(name, PRESETS[name].parameters[0].default, False))
        return dict(zip(chosen, self.cells(chosen, ALL_SCENARIOS), strict=True)), searched


def _plant_rows() -> Iterator[ResultRow]:
    """Yields the speed of the simulated plant under a constant controller, and its distance from
    token-level engines."""
    day = smooth_chat(1, None, mean=MILLION_A_DAY)
    begun = time.process_time()
    run_controller(day, ScheduleController([(0.0, {"S": 12})]))
    seconds = (time.process_time() - begun) * 1e6 / len(day.load)
    scenario = _compare_simulators()
    plan = [(0.0, {"S": 4}), (250.0, {"S": 9}), (1_100.0, {"S": 4})]
    quick, exact = (
        indicators(scenario, run_controller(scenario, ScheduleController(plan), engine_model=kind))
        for kind in (EngineModelKind.AGGREGATED, EngineModelKind.TOKEN_LEVEL)
    )
    yield from simulator_rows(seconds, quick, exact)


def _compare_simulators() -> AutoscalingScenario:
    load = loads.poisson_arrivals([2.0] * 5 + [9.0] * 10 + [3.0] * 15, loads.CHAT_LENGTHS, Random(5))
    troubles = PlantFaults(crashes=(400.0, 1_400.0), slow=((1_000.0, 1.35),))
    return replace(step_cold(1), name="compared", seconds=1_800.0, load=load, faults=troubles)


def _cell(cell: Measured, oracle: float | None) -> dict[str, float | None]:
    return {
        "attainment": round(cell["attainment"], 5),
        "servable": round(cell["servable"], 5),
        "unservable": cell["unservable"],
        "cost": round(cell["cost"], 3),
        "oracle": None if oracle is None else round(cell["cost"] / oracle, 3),
        "turns": round(cell["turns"], 1),
        "changes": round(cell["changes"], 1),
    }
