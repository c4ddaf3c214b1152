"""Selected scenarios on selected seeds: Fairlead and presets as they stand, without goals.

Presets have the knobs of the committed run. Known offline optima are used; others are searched for
only if asked, since a search takes minutes.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fairlead_bench.autoscaler.measurement import (
    FAIRLEAD,
    AutoscalerCell,
    measure,
    scenario_of,
    source_digest,
    unservable_of,
)
from fairlead_bench.autoscaler.result_rows import TARGET, TUNED, TunedPreset, geometric_mean, tuned_presets
from fairlead_bench.judging_seeds import judging_seeds_of
from fairlead_bench.measurement_cache import Measured, MeasurementCache, print_progress
from fairlead_bench.results import ResultRow, value_row, write_results
from fairlead_sim.autoscaling.closed_loop import run_schedule
from fairlead_sim.autoscaling.offline_optimum import replay_schedule, search_schedule
from fairlead_sim.autoscaling.optimum_cache import OptimumCache
from fairlead_sim.autoscaling.scenarios import ALL_SCENARIOS, SCENARIOS, WIDER_SCENARIOS
from fairlead_sim.autoscaling.unservable_requests import servable_share

JUDGING_FILE = Path(__file__).with_name("judging_seeds.json")
OPTIMUM = "offline optimum"
_GROUPS = {"reference": SCENARIOS, "wider": WIDER_SCENARIOS, "all": ALL_SCENARIOS}
_FIGURES = ("attainment", "servable", "unservable", "cost")
_WINDOW_FIGURES = ("window_attainment", "window_away")
"""Figures of scenarios with missing or inconsistent metrics."""

RunKey = tuple[str, int]
"""Scenario and seed."""


def scenario_names(text: str) -> list[str]:
    """Returns the scenarios that a comma-separated text names; a group names several."""
    names = [name for part in text.split(",") for name in (_GROUPS.get(part) or (part,))]
    if unknown := [name for name in names if name not in ALL_SCENARIOS]:
        raise argparse.ArgumentTypeError(
            f"no scenario {', '.join(unknown)}; known are {', '.join([*_GROUPS, *ALL_SCENARIOS])}"
        )
    return list(dict.fromkeys(names))


def judging_seeds(scenario: str) -> list[int]:
    """Returns the committed seeds for judging a scenario."""
    seeds: list[int] = json.loads(JUDGING_FILE.read_text(encoding="utf-8"))["seeds"][scenario]
    return seeds


def drawn_judging_seeds(scenario: str) -> list[int]:
    """Returns the seeds for judging that the written rule draws."""
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
        (one, key): AutoscalerCell(*key, one.preset, None if one.preset == FAIRLEAD else one.knob, traces)
        for key in keys
        for one in controllers
    }
    found = cache(cells.values())
    tables: dict[str, dict[RunKey, Measured]] = {
        FAIRLEAD if one.preset == FAIRLEAD else one.name: {key: found[cells[one, key]] for key in keys}
        for one in controllers
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
        yield value_row(f"{name}: within the SLO", "share", fmean(cell["attainment"] for cell in cells), None)
        yield value_row(f"{name}: servable within the SLO", "share", fmean(cell["servable"] for cell in cells), None)
        yield value_row(f"{name}: the same, least", "share", min(cell["servable"] for cell in cells), None)
        yield value_row(f"{name}: unservable", "requests", fmean(cell["unservable"] for cell in cells), None)
        if all("window_attainment" in cell for cell in cells):
            metric = f"{name}: within the SLO in a window and 5 minutes after, least"
            yield value_row(metric, "share", min(cell["window_attainment"] for cell in cells), None)
            metric = f"{name}: replicas removed in a window and 5 minutes after"
            yield value_row(metric, "replicas", sum(cell["window_away"] for cell in cells), None)
        yield value_row(f"{name}: cost ÷ {OPTIMUM}", "ratio", geometric_mean(ratios), None)


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
    servable = servable_share(run_schedule(scenario, known.steps), unservable_of(*key, traces, False))
    figures = known.attainment, servable.share, float(servable.unservable), known.cost
    return dict(zip(_FIGURES, figures, strict=True))


def _by_scenario(table: Mapping[RunKey, Measured]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the table by scenario and then by seed."""
    nested: dict[str, dict[str, dict[str, float]]] = {}
    for (scenario, seed), cell in table.items():
        shown = [figure for figure in (*_FIGURES, *_WINDOW_FIGURES) if figure in cell]
        nested.setdefault(scenario, {})[str(seed)] = {figure: round(cell[figure], 5) for figure in shown}
    return nested
