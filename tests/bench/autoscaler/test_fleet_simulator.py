"""The autoscaler in the fleet simulator: what is selected, what a cell measures, and the rows."""

import argparse
from dataclasses import replace
from random import Random

import pytest

from fairlead_bench.autoscaler import fleet_simulator
from fairlead_bench.autoscaler.fleet_simulator import (
    BOUND,
    FLEET_SCENARIOS,
    JUDGED_SCENARIOS,
    FleetCell,
    fleet_rows,
    measure_cell,
    select_runs,
)
from fairlead_bench.autoscaler.measurement import FAIRLEAD
from fairlead_bench.results import load_goals
from fairlead_sim.autoscaling.plant import AutoscalingScenario, PlantFaults
from fairlead_sim.autoscaling.reference_pools import reference_model, reference_pool, small_profile
from fairlead_sim.autoscaling.traffic import CHAT_LENGTHS, poisson_arrivals

FOUND = {"attainment": 0.995, "cost": 12.0, "cached_share": 0.2}
WINDOW = {"window_attainment": 0.999, "window_away": 0.0}


def test_presets_skip_days_and_bounds_of_days_take_fewer_runs() -> None:
    options = argparse.Namespace(scenarios=["smooth-chat", "drift"], presets="dynamo", no_bound=False)
    selected = select_runs(options)
    assert selected[FAIRLEAD, None] == {"smooth-chat": 0, "drift": 0}
    assert selected["dynamo", 1.5] == {"drift": 0}
    assert 0 < selected[BOUND, None]["smooth-chat"] < selected[BOUND, None]["drift"]
    options.no_bound, options.presets = True, ""
    assert list(select_runs(options)) == [(FAIRLEAD, None)]


def test_scenarios_have_no_prefill_and_decode_pools() -> None:
    assert "mix-move" not in FLEET_SCENARIOS
    assert len(JUDGED_SCENARIOS) == 8


def test_cell_has_the_cached_share_and_a_bound_keeps_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    load = poisson_arrivals([2.0] * 4 + [4.0] * 3, CHAT_LENGTHS, Random(1))
    setup = reference_pool(small_profile(), 6)
    made = AutoscalingScenario("made", 1, 420.0, reference_model([setup], 3.0, 0.15), (setup,), load)
    made = replace(made, faults=PlantFaults(missing=((120.0, 180.0),)))
    monkeypatch.setattr(fleet_simulator, "scenario_of", lambda *_: made)
    ours = measure_cell(FleetCell("made", 1, FAIRLEAD))
    bound = measure_cell(FleetCell("made", 1, BOUND, bound_runs=4))
    assert ours["requests"] == len(load)
    assert 0.0 < ours["cached_share"] < 0.3
    assert ours["window_attainment"] > 0.99
    assert bound["attainment"] >= 0.99
    assert bound["cost"] < ours["cost"]


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
