"""The autoscaler in the fleet simulator: what is selected, what a cell measures, and the rows."""

import argparse
from dataclasses import replace
from random import Random

import pytest

from fairlead_bench.autoscaler import fleet_simulator
from fairlead_bench.autoscaler.fleet_simulator import (
    BOUND,
    DAY_FACTORS,
    FLEET_SCENARIOS,
    JUDGED_SCENARIOS,
    FleetCell,
    cheapest_bounds,
    fleet_rows,
    measure_cell,
    name_tables,
    select_runs,
)
from fairlead_bench.autoscaler.measurement import FAIRLEAD, knob_values
from fairlead_bench.results import load_goals
from fairlead_sim.autoscaling.fleet_plant.scaled_schedule import DEFAULT_RUNS
from fairlead_sim.autoscaling.plant import AutoscalingScenario, PlantFaults
from fairlead_sim.autoscaling.reference_pools import reference_model, reference_pool, small_profile
from fairlead_sim.autoscaling.traffic import CHAT_LENGTHS, poisson_arrivals
from fairlead_testing.pytest_hooks.nightly import shortened

FOUND = {"attainment": 0.995, "cost": 12.0, "cached_share": 0.2}
WINDOW = {"window_attainment": 0.999, "window_away": 0.0}


def test_presets_skip_days_and_a_bound_of_a_day_is_one_run_for_each_factor() -> None:
    options = argparse.Namespace(scenarios=["smooth-chat", "drift"], presets="dynamo", no_bound=False)
    selected = select_runs(options)
    assert selected[FAIRLEAD, None] == {"smooth-chat": 0, "drift": 0}
    assert selected["dynamo", 1.5] == {"drift": 0}
    assert [knob for name, knob in selected if name == "dynamo"] == knob_values("dynamo")
    assert selected[BOUND, None] == {"drift": DEFAULT_RUNS}
    assert all(selected[BOUND, factor] == {"smooth-chat": 0} for factor in DAY_FACTORS)
    options.no_bound, options.presets = True, ""
    assert list(select_runs(options)) == [(FAIRLEAD, None)]


def test_presets_are_shown_at_their_best_and_usual_value() -> None:
    def found(*shares: float, cost: float) -> dict[str, dict[str, float]]:
        return {f"s{place}": {"attainment": share, "cost": cost} for place, share in enumerate(shares)}

    ours, usual, best = found(0.99, 0.99, cost=9.0), found(0.999, 0.98, cost=5.0), found(0.99, 0.995, cost=11.0)
    dearer = found(0.99, 1.0, cost=12.0)
    measured = {(FAIRLEAD, None): ours, ("dynamo", 2.0): dearer, ("dynamo", 1.5): usual, ("dynamo", 1.75): best}
    assert name_tables(measured) == {FAIRLEAD: ours, "dynamo at 1.75 (best)": best, "dynamo at 1.5 (fixed)": usual}


def test_scenarios_have_no_prefill_and_decode_pools() -> None:
    assert "mix-move" not in FLEET_SCENARIOS
    assert len(JUDGED_SCENARIOS) == 8


def test_cell_has_the_cached_share_and_a_bound_keeps_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = shortened([2.0] * 4 + [4.0] * 3, [1.0] * 2 + [2.0] * 2)
    load = poisson_arrivals(rates, CHAT_LENGTHS, Random(1))
    setup = reference_pool(small_profile(), 6)
    made = AutoscalingScenario("made", 1, 60.0 * len(rates), reference_model([setup], 3.0, 0.15), (setup,), load)
    made = replace(made, faults=PlantFaults(missing=((120.0, 180.0),)))
    monkeypatch.setattr(fleet_simulator, "scenario_of", lambda *_: made)
    ours = measure_cell(FleetCell("made", 1, FAIRLEAD))
    bound = measure_cell(FleetCell("made", 1, BOUND, bound_runs=4))
    fewer, more = (measure_cell(FleetCell("made", 1, BOUND, factor)) for factor in (0.5, 1.2))
    assert ours["requests"] == len(load)
    assert 0.0 < ours["cached_share"] < 0.3
    assert ours["window_attainment"] > 0.99
    assert bound["attainment"] >= 0.99
    assert bound["cost"] < ours["cost"]
    assert fewer["attainment"] < more["attainment"]
    assert fewer["cost"] < more["cost"]


def test_a_bound_is_the_cheapest_that_keeps_the_target() -> None:
    def cell(share: float, cost: float) -> dict[str, float]:
        return {"attainment": share, "cost": cost}

    measured = {
        (FAIRLEAD, None): {"drift": cell(0.99, 1.0)},
        (BOUND, None): {"drift": cell(0.99, 10.0), "failures": cell(0.98, 9.0)},
        (BOUND, 0.97): {"smooth-chat": cell(0.985, 20.0)},
        (BOUND, 1.0): {"smooth-chat": cell(0.992, 21.0)},
        (BOUND, 1.03): {"smooth-chat": cell(0.995, 22.0)},
    }
    assert cheapest_bounds(measured) == {
        "drift": cell(0.99, 10.0) | {"runs": DEFAULT_RUNS},
        "smooth-chat": cell(0.992, 21.0) | {"runs": 3, "factor": 1.0},
    }


def test_every_goal_has_its_row_and_presets_are_compared_where_they_ran() -> None:
    ours = {name: FOUND | (WINDOW if name not in JUDGED_SCENARIOS else {}) for name in FLEET_SCENARIOS}
    theirs = {"drift": {"attainment": 0.99, "cost": 16.0}, "failures": {"attainment": 0.9, "cost": 1.0}}
    bounds = {name: {"attainment": 0.99, "cost": 10.0} for name in FLEET_SCENARIOS}
    rows = {row.metric: row for row in fleet_rows({FAIRLEAD: ours, "hpa at 1 (fixed)": theirs}, bounds)}
    assert load_goals("autoscaler-fleet").items() == {name: row.goal for name, row in rows.items() if row.goal}.items()
    assert rows["drift: cost ÷ bound of the optimum"].ratio == pytest.approx(1.2)
    assert rows["cost ÷ bound of the optimum, geometric mean"].value == pytest.approx(1.2)
    compared = rows["hpa at 1 (fixed): cost where both keep 99 % (1 of 2 runs): fairlead ÷ it"]
    assert compared.ratio == pytest.approx(0.75)


def test_a_missed_share_and_a_removed_replica_do_not_hold() -> None:
    ours = {"drift": FOUND | {"attainment": 0.98}, "missing-metrics": FOUND | WINDOW | {"window_away": 1.0}}
    missed = [row.metric for row in fleet_rows({FAIRLEAD: ours}, {}) if not row.holds]
    assert missed == [
        "drift: within the SLO",
        "missing-metrics: replicas removed in a window and 5 minutes after",
        "cost ÷ bound of the optimum, geometric mean",
    ]
