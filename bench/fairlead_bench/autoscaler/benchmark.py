"""The autoscaler and the presets of other autoscalers, compared with an offline optimum.

A missed goal stays in the table and fails nothing.

Selected scenarios on selected seeds: Fairlead and presets as they stand, without goals.

Presets have the knobs of the committed run. Known offline optima are used; others are searched for
only if asked, since a search takes minutes.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, fsum, log
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from fairlead_bench.autoscaler.measurement import (
    FAIRLEAD,
    AutoscalerCell,
    indicators,
    knob_values,
    measure,
    scenario_of,
    source_digest,
    unservable_of,
)
from fairlead_bench.judging_seeds import judging_seeds_of
from fairlead_bench.measurement_cache import Measured, MeasurementCache, print_progress
from fairlead_bench.results import NO_GOALS, ResultRow, load_goals, meets_goal, write_results
from fairlead_sim.autoscalers import PRESETS
from fairlead_sim.autoscaling import traffic as loads
from fairlead_sim.autoscaling.closed_loop import ScheduleController, run_controller, run_schedule
from fairlead_sim.autoscaling.offline_optimum import OptimumCache, replay_schedule, search_schedule
from fairlead_sim.autoscaling.offline_optimum import OptimumSchedule as Oracle
from fairlead_sim.autoscaling.plant import EngineModelKind, PlantFaults
from fairlead_sim.autoscaling.scenarios import (
    ALL_SCENARIOS as KNOWN_SCENARIOS,
)
from fairlead_sim.autoscaling.scenarios import (
    SCENARIOS,
    WIDER_SCENARIOS,
    smooth_chat,
    step_cold,
)
from fairlead_sim.autoscaling.unservable_requests import servable_share

NAME = "autoscaler"
TARGET = 0.99
SMOOTH = ("smooth-chat", "smooth-short", "smooth-mixed")
HARD = ("noisy-hour", "failures", "slow-engine", "drift", "long-prompts", "mix-move")
METRICS_OUTAGES = ("missing-metrics", "inconsistent-metrics")
COMPARED_SCENARIOS = (*SMOOTH, *HARD, *METRICS_OUTAGES)
"""Scenarios on which presets are compared: without those that no controller without foresight can
meet."""
STRETCH_SCENARIOS = ("step-cold", "step-warm", "on-off", "zero-warm", "zero-cold")
ALL_SCENARIOS = (*COMPARED_SCENARIOS, *STRETCH_SCENARIOS)
COMPARED_PRESETS = ("hpa-concurrency", "kpa-concurrency")
"""One preset per project, as that project ships it: the signal that keeps the SLO most often."""
TUNED = Path("bench/results/autoscaler.json")
EXCEL, STRETCH = ", to excel", ", at a stretch"

JUDGING_FILE = Path(__file__).with_name("judging_seeds.json")
OPTIMUM = "offline optimum"
_GROUPS = {"reference": SCENARIOS, "wider": WIDER_SCENARIOS, "all": KNOWN_SCENARIOS}
_FIGURES = ("attainment", "servable", "unservable", "cost")
_WINDOW_FIGURES = ("window_attainment", "window_away")
"""Figures of scenarios with missing or inconsistent metrics."""

RunKey = tuple[str, int]
"""Scenario and seed."""

ORACLES = Path(__file__).with_name("offline_optima.json")
SEARCHED = (*HARD, *METRICS_OUTAGES)
"""Scenarios on which a preset's best knob is searched: all compared ones but the days."""
MILLION_A_DAY = 11.6
ByKnob = dict[float, Mapping[str, Measured]]


@dataclass(frozen=True, slots=True)
class TunedPreset:
    """A preset and its knob: the best single value over all compared scenarios, or what it is fixed
    to."""

    preset: str
    knob: float
    best: bool

    @property
    def name(self) -> str:
        return f"{self.preset} at {self.knob:g}{' (best)' if self.best else ' (fixed)'}"


def tuned_presets(table: dict[str, Any], presets: Sequence[str]) -> list[TunedPreset]:
    """Returns these presets with the knobs of the committed run, best and fixed."""
    found = []
    for name in table:
        preset, _, rest = name.partition(" at ")
        if preset in presets:
            knob, kind = rest.split()
            found.append(TunedPreset(preset, float(knob), kind == "(best)"))
    return found


def geometric_mean(values: Sequence[float]) -> float | None:
    """Returns the geometric mean; None without values."""
    return exp(fsum(map(log, values)) / len(values)) if values else None


def best_knob(found: Mapping[float, Mapping[str, Measured]]) -> float:
    """Returns the knob that keeps the target most often, and the cheapest of these."""

    def score(knob: float) -> tuple[int, float]:
        cells = list(found[knob].values())
        return sum(map(meets_slo, cells)), -(geometric_mean([cell["cost"] for cell in cells]) or 0.0)

    return max(found, key=score)


def fairlead_rows(found: Mapping[str, Measured], oracles: Mapping[str, float]) -> Iterator[ResultRow]:
    """Yields the rows with goals of the core, by scenario."""
    wanted = load_goals(NAME)

    row = wanted.value

    def priced(metric: str, name: str) -> ResultRow:
        return wanted.ratio(metric, "money", found[name]["cost"], "oracle", oracles[name])

    for name in SMOOTH:
        yield row(f"{name}: within the objectives", "share", found[name]["attainment"])
        for level in ("", EXCEL, STRETCH):
            yield priced(f"{name}: cost ÷ oracle{level}", name)
        yield row(f"{name}: changes of direction an hour{EXCEL}", "1/h", found[name]["turns"])
    for name in HARD:
        for level in ("", EXCEL):
            yield row(f"{name}: within the objectives{level}", "share", found[name]["attainment"])
        yield priced(f"{name}: cost ÷ oracle{EXCEL}", name)
    mean = geometric_mean([found[name]["cost"] / oracles[name] for name in HARD])
    for level in ("", EXCEL, STRETCH):
        yield row(f"six hard scenarios: cost ÷ oracle, geometric mean{level}", "ratio", mean)
    for name in METRICS_OUTAGES:
        yield row(
            f"{name}: within the objectives in a window and 5 minutes after, least",
            "share",
            found[name]["window_attainment"],
        )
        yield row(
            f"{name}: replicas taken away in a window and 5 minutes after", "replicas", found[name]["window_away"]
        )
    yield row(
        f"step-cold: from the first possible moment until 95 % again{EXCEL}", "s", found["step-cold"]["again_seconds"]
    )
    yield priced(f"step-cold: cost ÷ oracle{EXCEL}", "step-cold")
    yield row(f"step-warm: within the objectives{EXCEL}", "share", found["step-warm"]["attainment"])
    yield row(f"on-off: within the objectives{EXCEL}", "share", found["on-off"]["attainment"])
    for level in (EXCEL, STRETCH):
        yield priced(f"on-off: cost ÷ oracle{level}", "on-off")
    for level in (EXCEL, STRETCH):
        yield row(f"zero-warm: within the objectives{level}", "share", found["zero-warm"]["attainment"])
        yield priced(f"zero-warm: cost ÷ oracle{level}", "zero-warm")
    cold = found["zero-cold"]
    yield row(f"zero-cold: requests lost{EXCEL}", "requests", cold["abandoned"] + cold["lost"])
    yield row(f"zero-cold: first token after silence, beyond the start-up, longest{EXCEL}", "s", cold["wake_seconds"])


def comparison_rows(
    found: Mapping[str, Measured], others: Mapping[TunedPreset, Mapping[str, Measured]]
) -> Iterator[ResultRow]:
    """Ours ÷ each preset's cost, over the compared scenarios in which both keep the target; and how
    many each keeps."""
    wanted = load_goals(NAME)
    yield wanted.value(
        f"{FAIRLEAD}: of {len(COMPARED_SCENARIOS)} scenarios keeps 99 % in", "scenarios", _share_meeting_slo(found)
    )
    for chosen, cells in others.items():
        yield wanted.value(
            f"{chosen.name}: of {len(COMPARED_SCENARIOS)} scenarios keeps 99 % in",
            "scenarios",
            _share_meeting_slo(cells),
        )
        compared = {name: found[name] for name in COMPARED_SCENARIOS}
        _, value, other = costs_where_both_meet(compared, cells)
        if not chosen.best:
            continue
        metric = beats_goal(chosen.preset)
        ratio = None if value is None or not other else value / other
        # Who keeps the target nowhere is beaten without a price.
        holds = ratio is None or meets_goal(wanted[metric], ratio)
        yield ResultRow(metric, value, "money", chosen.name, other, ratio, wanted[metric], holds)


def costs_where_both_meet(
    ours: Mapping[str, Measured], theirs: Mapping[str, Measured]
) -> tuple[int, float | None, float | None]:
    """Returns the number of cells in which both keep the target, and the mean costs there."""
    both = [name for name in ours if meets_slo(ours[name]) and meets_slo(theirs[name])]
    value, other = (geometric_mean([cells[name]["cost"] for name in both]) for cells in (ours, theirs))
    return len(both), value, other


def beats_goal(preset: str) -> str:
    return f"{preset} at its best knob: cost where both keep 99 %, geometric mean: {FAIRLEAD} ÷ it"


def simulator_rows(day_seconds: float, quick: Measured, exact: Measured) -> Iterator[ResultRow]:
    """Yields the rows of the plant: its speed, and its distance from token-level engines."""
    wanted = load_goals(NAME)
    yield wanted.value("a day of a million requests under one controller, simulated on one core", "s", day_seconds)
    metric = "aggregated and token-level engines: attainment apart"
    yield wanted.value(metric, "points", 100.0 * abs(quick["attainment"] - exact["attainment"]))
    metric = "aggregated ÷ token-level engines: replica-hours"
    yield wanted.ratio(metric, "h", quick["cost"], "token-level", exact["cost"])


def meets_slo(cell: Measured) -> bool:
    return cell["attainment"] >= TARGET


def _share_meeting_slo(cells: Mapping[str, Measured]) -> int:
    return sum(meets_slo(cells[name]) for name in COMPARED_SCENARIOS)


def scenario_names(text: str) -> list[str]:
    """Returns the scenarios that a comma-separated text names; a group names several."""
    names = [name for part in text.split(",") for name in (_GROUPS.get(part) or (part,))]
    if unknown := [name for name in names if name not in KNOWN_SCENARIOS]:
        raise argparse.ArgumentTypeError(
            f"no scenario {', '.join(unknown)}; known are {', '.join([*_GROUPS, *KNOWN_SCENARIOS])}"
        )
    return list(dict.fromkeys(names))


def judging_seeds(scenario: str) -> list[int]:
    seeds: list[int] = json.loads(JUDGING_FILE.read_text(encoding="utf-8"))["seeds"][scenario]
    return seeds


def drawn_judging_seeds(scenario: str) -> list[int]:
    return judging_seeds_of(f"autoscaler scenario {scenario}")


def selected_runs(given: argparse.Namespace) -> list[RunKey]:
    """Returns the scenarios and seeds that the options select."""
    return [
        (name, seed)
        for name in given.scenarios or SCENARIOS
        for seed in (judging_seeds(name) if given.judging else given.seeds or [given.seed])
    ]


def run_selected(given: argparse.Namespace, presets: Sequence[str]) -> None:
    """Measures, and writes the rows and a table by controller, scenario and seed.

    given: the options of ``benchmark``.
    """
    traces = "" if given.traces is None or not given.traces.is_dir() else str(given.traces)
    keys = selected_runs(given)
    committed = json.loads(TUNED.read_text(encoding="utf-8"))["table"] if presets else {}
    controllers = [TunedPreset(FAIRLEAD, 0.0, True), *tuned_presets(committed, presets)]
    cache = MeasurementCache(
        given.out.with_name("autoscaler-cells.jsonl"), measure, source_digest, jobs=given.jobs, said=print_progress
    )
    cells = {
        (controller, key): AutoscalerCell(
            *key, controller.preset, None if controller.preset == FAIRLEAD else controller.knob, traces
        )
        for key in keys
        for controller in controllers
    }
    found = cache(cells.values())
    tables: dict[str, dict[RunKey, Measured]] = {
        FAIRLEAD if controller.preset == FAIRLEAD else controller.name: {
            key: found[cells[controller, key]] for key in keys
        }
        for controller in controllers
    }
    optima = {key: figures for key in keys if (figures := _optimum_figures(key, traces, given))}
    rows = [row for name in tables for row in selected_rows(name, tables[name], optima)]
    tables[OPTIMUM] = optima
    more: dict[str, Any] = {
        "traces": traces != "",
        "target": TARGET,
        "judging": given.judging,
        "table": {name: _by_scenario(table) for name, table in tables.items()},
    }
    write_results(given.out.stem, rows, seed=keys[0][1], file=given.out, more=more)


def selected_rows(
    controller: str, table: Mapping[RunKey, Measured], optima: Mapping[RunKey, Measured]
) -> Iterator[ResultRow]:
    """Yields a controller's rows by scenario: means over seeds, and the least servable share."""
    for scenario in dict.fromkeys(name for name, _ in table):
        runs = {key: cell for key, cell in table.items() if key[0] == scenario}
        name = f"{scenario}, {controller}"
        ratios = [cell["cost"] / optima[key]["cost"] for key, cell in runs.items() if key in optima]
        cells = runs.values()
        yield NO_GOALS.value(f"{name}: within the SLO", "share", fmean(cell["attainment"] for cell in cells))
        yield NO_GOALS.value(f"{name}: servable within the SLO", "share", fmean(cell["servable"] for cell in cells))
        yield NO_GOALS.value(f"{name}: the same, least", "share", min(cell["servable"] for cell in cells))
        yield NO_GOALS.value(f"{name}: unservable", "requests", fmean(cell["unservable"] for cell in cells))
        if all("window_attainment" in cell for cell in cells):
            metric = f"{name}: within the SLO in a window and 5 minutes after, least"
            yield NO_GOALS.value(metric, "share", min(cell["window_attainment"] for cell in cells))
            metric = f"{name}: replicas removed in a window and 5 minutes after"
            yield NO_GOALS.value(metric, "replicas", sum(cell["window_away"] for cell in cells))
        yield NO_GOALS.value(f"{name}: cost ÷ {OPTIMUM}", "ratio", geometric_mean(ratios))


def _optimum_figures(key: RunKey, traces: str, given: argparse.Namespace) -> Measured | None:
    """Returns the figures of the known optimum, in the plant as it is now.

    If none is known, a new one is searched for with the given number of runs, and stored.
    """
    scenario = scenario_of(*key, traces)
    cache = OptimumCache(given.optima)
    known = cache.get(scenario)
    if known is not None:
        known = replay_schedule(scenario, known.steps)
    if given.search_optima and (known is None or known.attainment < TARGET):
        print_progress(f"{key[0]}, seed {key[1]}: search for an offline optimum")
        known = search_schedule(scenario, runs=given.search_optima)
        cache.put(scenario, known)
    if known is None:
        return None
    servable = servable_share(run_schedule(scenario, known.steps), unservable_of(*key, traces))
    figures = known.attainment, servable.share, float(servable.unservable), known.cost
    return dict(zip(_FIGURES, figures, strict=True))


def _by_scenario(table: Mapping[RunKey, Measured]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the table by scenario and then by seed."""
    nested: dict[str, dict[str, dict[str, float]]] = {}
    for (scenario, seed), cell in table.items():
        shown = [figure for figure in (*_FIGURES, *_WINDOW_FIGURES) if figure in cell]
        nested.setdefault(scenario, {})[str(seed)] = {figure: round(cell[figure], 5) for figure in shown}
    return nested


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
    begun = time.monotonic()
    bench = AutoscalerBenchmark(given)
    found = bench.cells([TunedPreset(FAIRLEAD, 0.0, True)], ALL_SCENARIOS)[0]
    others = bench.presets(names)
    rows: list[ResultRow] = [
        *fairlead_rows(found, bench.costs),
        *comparison_rows(found, others),
        *_plant_rows(),
    ]
    table = {FAIRLEAD: found} | {chosen.name: cells for chosen, cells in others.items()}
    more: dict[str, Any] = {
        "traces": bench.traces != "",
        "oracles": {name: bench.oracle_cell(name) for name in bench.oracles},
        "table": {
            name: {scenario: _cell(cell, bench.costs.get(scenario)) for scenario, cell in cells.items()}
            for name, cells in table.items()
        },
        "minutes": (time.monotonic() - begun) / 60.0,
    }
    write_results(NAME, rows, seed=given.seed, file=given.out, more=more)
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
        unservable = unservable_of(name, self._seed, self.traces)
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

        found = self._lab([cell(controller, scenario) for scenario in scenarios for controller in controllers])
        return [{scenario: found[cell(controller, scenario)] for scenario in scenarios} for controller in controllers]

    def presets(self, names: Sequence[str]) -> dict[TunedPreset, Mapping[str, Measured]]:
        """Returns each preset at its best and its fixed value in every scenario."""
        tried = [TunedPreset(name, knob, True) for name in names for knob in knob_values(name)]
        searched: dict[str, ByKnob] = {name: {} for name in names}
        for one, cells in zip(tried, self.cells(tried, SEARCHED), strict=True):
            searched[one.preset][one.knob] = cells
        chosen: list[TunedPreset] = []
        for name in names:
            chosen.append(TunedPreset(name, best_knob(searched[name]), True))
            chosen.append(TunedPreset(name, PRESETS[name].parameters[0].default, False))
        return dict(zip(chosen, self.cells(chosen, ALL_SCENARIOS), strict=True))


def _plant_rows() -> Iterator[ResultRow]:
    """Yields the speed of the simulated plant under a constant controller, and its distance from
    token-level engines."""
    day = smooth_chat(1, None, mean=MILLION_A_DAY)
    begun = time.process_time()
    run_controller(day, ScheduleController([(0.0, {"S": 12})]))
    seconds = (time.process_time() - begun) * 1e6 / len(day.load)
    load = loads.poisson_arrivals([2.0] * 5 + [9.0] * 10 + [3.0] * 15, loads.CHAT_LENGTHS, Random(5))
    troubles = PlantFaults(crashes=(400.0, 1_400.0), slow=((1_000.0, 1.35),))
    scenario = replace(step_cold(1), name="compared", seconds=1_800.0, load=load, faults=troubles)
    plan = [(0.0, {"S": 4}), (250.0, {"S": 9}), (1_100.0, {"S": 4})]
    quick, exact = (
        indicators(scenario, run_controller(scenario, ScheduleController(plan), engine_model=kind))
        for kind in (EngineModelKind.AGGREGATED, EngineModelKind.TOKEN_LEVEL)
    )
    yield from simulator_rows(seconds, quick, exact)


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
