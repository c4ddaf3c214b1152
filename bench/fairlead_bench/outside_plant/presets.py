"""The autoscaler and presets of others in a second plant.

    python -m fairlead_bench autoscaler-outside-presets [--seeds N,…] [--values all|two|usual]

One preset of each project, with the signal that keeps the SLO most often. Each runs with the values
of its first parameter that the autoscaler's benchmark searches. ``--values two`` leaves the usual
value and the best one of that benchmark, ``usual`` the first of them. The best value is the one
that keeps the target in most runs, and then costs least. Requests that no start could have served
do not count.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fairlead_autoscaler
import fairlead_sim
from fairlead.runtime.compiled_build import sources_digest
from fairlead_autoscaler.mix import simulation_solver
from fairlead_bench.autoscaler.benchmark import (
    COMPARED_PRESETS,
    TUNED,
    TunedPreset,
    best_knob,
    costs_where_both_meet,
    geometric_mean,
    meets_slo,
    tuned_presets,
)
from fairlead_bench.autoscaler.measurement import FAIRLEAD, knob_values, preset_at
from fairlead_bench.measurement_cache import Measured, MeasurementCache, print_progress
from fairlead_bench.outside_plant.benchmark import known_names, measure
from fairlead_bench.outside_plant.offline_optimum import OPTIMUM_FILE, OptimumFile
from fairlead_bench.outside_plant.plant import Controller, PlantOptions, core_controller, core_info
from fairlead_bench.outside_plant.scenario import FAMILIES, Scenario
from fairlead_bench.results import NO_GOALS, ResultRow, write_results
from fairlead_sim.adapters.autoscaler_adapter import AutoscalerAdapter, parse_model
from fairlead_sim.autoscalers import PRESETS

NAME = "autoscaler-outside-presets"
COMPARED_FAMILIES = (
    *("long-prompts", "noisy-chat", "steady-chat", "alike-neighbours", "failures"),
    *("slow-engine", "answer-drift", "prefill-decode", "metric-gaps", "metric-zeros"),
)
"""Families on which presets are compared: without the steps and silences, of which no controller
knows in advance, and without the day, which takes minutes."""
ByRun = Mapping[str, Measured]
"""Figures by family and seed."""


@dataclass(frozen=True, slots=True)
class PresetCell:
    """One controller in one run.

    value: of a preset's first parameter; the core has none.
    """

    family: str
    seed: int
    controller: str
    value: float | None = None


def main(arguments: Sequence[str]) -> int:
    """Runs the core and the presets, and returns 0."""
    parser = argparse.ArgumentParser(description="The core and presets of others in the outside plant.")
    families, presets = known_names(FAMILIES, "family"), known_names(PRESETS, "preset")
    parser.add_argument("--families", type=families, default=list(COMPARED_FAMILIES), metavar="NAME,…")
    parser.add_argument(
        "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1], metavar="N,…"
    )
    parser.add_argument("--presets", type=presets, default=list(COMPARED_PRESETS), metavar="NAME,…")
    parser.add_argument("--values", choices=("all", "two", "usual"), default="all", help="of each parameter")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--file", type=Path, default=Path(f"out/bench/{NAME}.json"), metavar="FILE")
    given = parser.parse_args(arguments)
    runs = [(family, seed) for family in given.families for seed in given.seeds]
    cells = MeasurementCache(
        given.file.with_name("autoscaler-outside-cells.jsonl"),
        measure_cell,
        source_digest,
        jobs=given.jobs,
        said=print_progress,
    )
    values = _values(given.presets, given.values)
    ours, found = _run_controllers(cells, runs, values)
    optima = {f"{family} {seed}": _optimum_hours(family, seed) for family, seed in runs}
    tables = dict(_chosen_tables(found))
    more: dict[str, Any] = {
        "optima": optima,
        "table": {FAIRLEAD: ours, **{one.name: table for one, table in tables.items()}},
    }
    write_results(NAME, list(preset_rows(ours, tables, optima)), seed=given.seeds[0], file=given.file, more=more)
    return 0


def measure_cell(cell: PresetCell) -> Measured:
    """Returns the share within both targets, and the cost in replica-hours."""
    found = measure(cell.family, cell.seed, PlantOptions(), lambda scenario: _controller(cell, scenario), None)
    return {
        "attainment": found.share,
        "servable": found.servable_share,
        "cost": found.replica_hours,
        "changes": found.changes_per_hour,
    }


def source_digest(cell: PresetCell) -> str:
    """Returns a digest of the sources of the plant and of all controllers."""
    return _source_digest()


@cache
def _source_digest() -> str:
    places = [Path(__file__).parent, *map(Path, fairlead_autoscaler.__path__)]
    adapters = [Path(place) / "adapters" for place in fairlead_sim.__path__]
    return sources_digest([*places, *adapters])


def preset_rows(
    ours: ByRun,
    tables: Mapping[TunedPreset, ByRun],
    optima: Mapping[str, float | None],
) -> Iterator[ResultRow]:
    """Yields the rows of the core, and of each preset at its best and its fixed value."""
    yield from _controller_rows(FAIRLEAD, ours, optima)
    for one, table in tables.items():
        yield from _controller_rows(one.name, table, optima)
        runs, value, other = costs_where_both_meet(ours, table)
        metric = f"{one.name}: cost where both keep 99 % ({runs} runs), geometric mean: {FAIRLEAD} ÷ it"
        yield NO_GOALS.ratio(metric, "replica-h", value, one.preset, other)


def _controller_rows(name: str, table: ByRun, optima: Mapping[str, float | None]) -> Iterator[ResultRow]:
    kept = sum(map(meets_slo, table.values()))
    yield NO_GOALS.value(f"{name}: of {len(table)} runs keeps 99 % in", "runs", kept)
    ratios = [cell["cost"] / hours for run, cell in table.items() if (hours := optima[run])]
    yield NO_GOALS.value(f"{name}: cost ÷ offline optimum, geometric mean", "ratio", geometric_mean(ratios))


def _values(names: Sequence[str], kind: str) -> dict[str, list[float]]:
    """Returns the values of the first parameter of each preset."""
    if kind == "all":
        return {name: knob_values(name) for name in names}
    values = {name: {PRESETS[name].parameters[0].default} for name in names}
    if kind == "two":
        for preset in tuned_presets(json.loads(TUNED.read_text(encoding="utf-8"))["table"], names):
            values[preset.preset].add(preset.knob)
    return {name: sorted(chosen) for name, chosen in values.items()}


def _run_controllers(
    cells: MeasurementCache[PresetCell], runs: Sequence[tuple[str, int]], values: Mapping[str, Sequence[float]]
) -> tuple[ByRun, dict[str, dict[float, ByRun]]]:
    """Returns the figures of the core, and those of each preset by value.

    Their share is that of the requests that a start could have served.
    """
    all_values = [(FAIRLEAD, None), *((name, value) for name in values for value in values[name])]
    measured = cells([PresetCell(*run, name, value) for run in runs for name, value in all_values])

    def table(name: str, value: float | None) -> ByRun:
        found = {f"{family} {seed}": measured[PresetCell(family, seed, name, value)] for family, seed in runs}
        return {run: {**cell, "attainment": cell["servable"]} for run, cell in found.items()}

    return table(FAIRLEAD, None), {name: {value: table(name, value) for value in values[name]} for name in values}


def _chosen_tables(found: Mapping[str, Mapping[float, ByRun]]) -> Iterator[tuple[TunedPreset, ByRun]]:
    for name, by_value in found.items():
        best, fixed = best_knob(by_value), PRESETS[name].parameters[0].default
        if len(by_value) > 1:
            yield TunedPreset(name, best, True), by_value[best]
        yield TunedPreset(name, fixed, False), by_value[fixed]


def _controller(cell: PresetCell, scenario: Scenario) -> Controller:
    """Returns a new controller, behind the seam that outside tools use."""
    if cell.controller == FAIRLEAD or cell.value is None:
        return core_controller(scenario, {})
    model = parse_model(core_info(scenario))
    return AutoscalerAdapter(preset_at(cell.controller, cell.value, model), model, simulation_solver)


def _optimum_hours(family: str, seed: int) -> float | None:
    """Returns the replica-hours of the known offline optimum."""
    optimum = OptimumFile(OPTIMUM_FILE).find(FAMILIES[family](seed), PlantOptions(), may_search=False)
    return None if optimum is None else optimum.replica_hours
