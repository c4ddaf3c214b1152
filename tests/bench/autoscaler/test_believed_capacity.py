"""The capacity that the core believes, compared with that of fixed fleets."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead_bench.autoscaler import believed_capacity
from fairlead_bench.autoscaler.believed_capacity import (
    CapacityComparison,
    WatchingController,
    capacity_rows,
    compare_capacity,
)
from fairlead_sim.autoscaling.capacity.fixed_fleet import CASES, fixed_fleet_scenario, measure_fixed_fleet
from fairlead_sim.autoscaling.closed_loop import run_controller
from fairlead_sim.autoscaling.routing.load_balancing import LoadPolicy
from fairlead_testing.pytest_hooks.nightly import shortened


def test_a_core_that_watches_changes_nothing() -> None:
    scenario = fixed_fleet_scenario(CASES["S chat"], 3, 2.0, requests=400)
    scenario = replace(
        scenario,
        pools=tuple([replace(one, facts=replace(one.facts, maximum=50)) for one in scenario.pools]),
    )
    controller = WatchingController(scenario.model)
    outcome = run_controller(scenario, controller)
    assert {sample.desired for sample in outcome.samples} == {(3,)}
    assert 0.5 < controller.believed[-1] < 2.0


def test_the_comparison_is_of_the_same_fleet() -> None:
    found = compare_capacity(CASES["S chat"], 4, requests=shortened(2_000, 800), seed=1)
    assert found.believed is not None
    assert found.ratio == pytest.approx(found.believed / found.measured)
    assert found.missed <= 0.01 < measure_fixed_fleet(CASES["S chat"], 4, 4 * found.measured * 1.2).share


def test_rows_have_a_ratio_for_each_fleet_and_a_mean() -> None:
    case = replace(CASES["L very long"], load_policy=LoadPolicy.PROMPT_WORK)
    unknown = CapacityComparison(16, 0.0, None, 1.0)
    rows = list(
        capacity_rows(case, [CapacityComparison(4, 0.5, 0.25, 0.01), CapacityComparison(8, 0.5, 1.0, 0.01), unknown])
    )
    assert rows[0].metric == "L very long, prompt-work, 4 replicas: capacity believed ÷ measured"
    assert [row.ratio for row in rows[:3]] == [0.5, 2.0, None]
    assert rows[3].value == pytest.approx(1.0)


def test_the_benchmark_writes_what_it_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "capacity.json"
    options = ["--cases", "S chat", "--policies", "prompt-work,random-two", "--replicas", "4", "--requests", "300"]
    assert believed_capacity.main([*options, "--out", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["metric"].partition(":")[0] for row in rows] == [
        "S chat, prompt-work, 4 replicas",
        "S chat, prompt-work",
        "S chat, random-two, 4 replicas",
        "S chat, random-two",
    ]
    with pytest.raises(SystemExit):
        believed_capacity.main(["--cases", "unheard of", "--out", str(file)])
