"""Selected scenarios: their names, the seeds for judging, and what a run writes."""

import argparse
import json
from pathlib import Path

import pytest

from fairlead_bench.autoscaler import benchmark
from fairlead_bench.autoscaler.benchmark import (
    OPTIMUM,
    drawn_judging_seeds,
    judging_seeds,
    scenario_names,
    selected_rows,
    selected_runs,
)
from fairlead_bench.autoscaler.measurement import FAIRLEAD
from fairlead_bench.judging_seeds import TUNING_SEEDS
from fairlead_sim.autoscaling.scenarios import ALL_SCENARIOS, SCENARIOS, WIDER_SCENARIOS


@pytest.mark.parametrize("name", ALL_SCENARIOS)
def test_judging_seeds_of_each_scenario_are_those_of_the_written_rule(name: str) -> None:
    seeds = judging_seeds(name)
    assert seeds == drawn_judging_seeds(name)
    assert len(set(seeds)) == 20
    assert not {*seeds} & {*TUNING_SEEDS, *range(101, 109)}


def test_names_and_groups_select_scenarios_once_each() -> None:
    assert scenario_names("wider") == list(WIDER_SCENARIOS)
    assert scenario_names("all") == [*SCENARIOS, *WIDER_SCENARIOS]
    assert scenario_names("drift,l4-chat,wider")[:3] == ["drift", "l4-chat", "drifting-lengths"]
    assert len(scenario_names("l4-chat,wider")) == len(WIDER_SCENARIOS)
    with pytest.raises(argparse.ArgumentTypeError, match="no scenario nope; known are reference, wider, all, smooth"):
        scenario_names("drift,nope")


def test_rows_are_means_over_seeds_and_the_least_servable_share() -> None:
    def cell(attainment: float, servable: float, cost: float) -> dict[str, float]:
        return {"attainment": attainment, "servable": servable, "unservable": 10.0, "cost": cost}

    table = {
        ("drift", 1): cell(0.9, 0.98, 4.0),
        ("drift", 2): cell(0.96, 0.99, 2.0),
        ("missing-metrics", 1): cell(1.0, 1.0, 1.0) | {"window_attainment": 0.99, "window_away": 2.0},
        ("missing-metrics", 2): cell(1.0, 1.0, 1.0) | {"window_attainment": 1.0, "window_away": 1.0},
    }
    optima = {("drift", 1): cell(0.99, 0.99, 1.0), ("drift", 2): cell(0.99, 0.99, 2.0)}
    rows = {row.metric: row.value for row in selected_rows("hpa", table, optima)}
    assert rows["drift, hpa: within the SLO"] == pytest.approx(0.93)
    assert rows["drift, hpa: servable within the SLO"] == pytest.approx(0.985)
    assert rows["drift, hpa: the same, least"] == 0.98
    assert rows["drift, hpa: unservable"] == 10.0
    assert rows["drift, hpa: cost ÷ offline optimum"] == pytest.approx(2.0)  # √(4 · 1)
    assert rows["missing-metrics, hpa: cost ÷ offline optimum"] is None
    assert rows["missing-metrics, hpa: within the SLO in a window and 5 minutes after, least"] == 0.99
    assert rows["missing-metrics, hpa: replicas removed in a window and 5 minutes after"] == 3.0
    assert not any("window" in metric for metric in rows if metric.startswith("drift"))


@pytest.mark.nightly
def test_a_run_leaves_the_same_requests_out_for_all_and_writes_them(
    tmp_path: Path,
) -> None:
    file = tmp_path / "selected.json"
    arguments = ["--scenarios", "step-warm", "--presets", "hpa-concurrency", "--jobs", "1", "--out", str(file)]
    assert benchmark.main(arguments) == 0
    table = json.loads(file.read_text(encoding="utf-8"))["table"]
    assert len(table) == 4
    cells = {controller: scenarios["step-warm"]["1"] for controller, scenarios in table.items()}
    assert len({cell["unservable"] for cell in cells.values()}) == 1
    assert cells[FAIRLEAD]["unservable"] > 0
    assert cells[FAIRLEAD]["servable"] > cells[FAIRLEAD]["attainment"]
    assert cells[OPTIMUM]["cost"] < cells[FAIRLEAD]["cost"]


def test_seeds_are_those_for_judging_those_given_or_the_one_seed() -> None:
    def keys(**options: object) -> list[tuple[str, int]]:
        given = argparse.Namespace(**{"scenarios": ["drift"], "judging": False, "seeds": None, "seed": 1} | options)
        return selected_runs(given)

    assert keys() == [("drift", 1)]
    assert keys(seeds=[2, 3]) == [("drift", 2), ("drift", 3)]
    assert keys(judging=True) == [("drift", seed) for seed in drawn_judging_seeds("drift")]
    assert [name for name, _ in keys(scenarios=None)] == list(SCENARIOS)
