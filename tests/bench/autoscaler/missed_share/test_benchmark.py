"""The benchmark of missed shares, and its predictions."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead_bench.autoscaler.missed_share import benchmark
from fairlead_bench.autoscaler.missed_share.benchmark import (
    NAME,
    PLANTS,
    REPLICAS,
    FixedFleetCase,
    FleetComparison,
    PredictedShare,
    PredictingController,
    case_rows,
    committed_rates,
    compare_fleet,
    is_within,
    load_cases,
    outside_fleet_scenario,
    summary_rows,
)
from fairlead_bench.results import load_goals
from fairlead_sim.autoscaling.closed_loop import run_controller
from fairlead_sim.autoscaling.fixed_fleet import CASES, fixed_fleet_scenario
from fairlead_testing.pytest_hooks.nightly import shortened

GOALS = load_goals(NAME)


def comparison(measured: float, derived: float, corrected: float, plant: str = "aggregated") -> FleetComparison:
    predicted = PredictedShare(derived, corrected, derived, corrected, 1.0)
    return FleetComparison(FixedFleetCase(plant, "S chat", 8, 1.25), 30_000, measured, 0.0, predicted, 0.98)


def test_every_plant_has_every_size_more_than_once() -> None:
    rates = committed_rates()
    cases = load_cases(PLANTS, REPLICAS, rates)
    assert {case.plant for case in cases} == set(PLANTS)
    for plant in PLANTS:
        for traffic in rates[plant]:
            sizes = [case.replicas for case in cases if (case.plant, case.traffic) == (plant, traffic)]
            assert set(sizes) == set(REPLICAS), (plant, traffic)
            assert len(sizes) >= 2 * len(REPLICAS), (plant, traffic)
    assert len(set(cases)) == len(cases)
    assert load_cases(["outside"], [8], rates) == [
        case for case in cases if case.plant == "outside" and case.replicas == 8
    ]


def test_shares_within_a_factor() -> None:
    assert is_within(0.02, 0.01)
    assert is_within(0.005, 0.01)
    assert not is_within(0.0201, 0.01)
    assert is_within(0.0201, 0.01, 3.0)
    assert not is_within(0.0, 0.01)


def test_each_fleet_has_two_rows() -> None:
    derived, corrected = case_rows([comparison(0.01, 0.03, 0.012)])
    assert derived.metric == "aggregated, S chat, 8 replicas at 1.25/s each: missed share, derived ÷ measured"
    assert (derived.ratio, corrected.ratio) == (pytest.approx(3.0), pytest.approx(1.2))


def test_only_fleets_between_a_thousandth_and_a_tenth_are_judged() -> None:
    fleets = [comparison(0.01, 0.03, 0.012), comparison(0.02, 0.03, 0.05), comparison(0.2, 0.9, 0.9)]
    rows = {row.metric: row for row in summary_rows(fleets)}
    assert rows["aggregated: fleets judged"].value == 2.0
    named = "aggregated: fleets whose missed share, {}, is within a factor of {}"
    assert rows[named.format("derived", 2)].value == 0.5
    assert rows[named.format("derived", 3)].value == 1.0
    assert rows[named.format("corrected", 2)].value == 0.5
    assert not rows[named.format("corrected", 2)].holds
    [alone] = summary_rows([comparison(0.5, 0.5, 0.5)])
    assert alone.value == 0.0


def test_every_goal_has_a_row() -> None:
    rows = list(summary_rows([comparison(0.01, 0.01, 0.01, plant) for plant in PLANTS]))
    assert {row.metric: row.goal for row in rows if row.goal is not None} == GOALS
    assert all(row.holds for row in rows)


def test_the_benchmark_writes_every_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "share.json"
    rates = {"aggregated": {"L chat": {"4": [6.0], "8": [6.1]}}}
    monkeypatch.setattr(benchmark, "committed_rates", lambda: rates)
    options = ["--plants", "aggregated", "--replicas", "4", "--requests", "1500", "--jobs", "1"]
    assert benchmark.main([*options, "--out", str(file)]) == 0
    written = json.loads(file.read_text(encoding="utf-8"))
    [case] = written["cases"]
    assert case["case"] == {"plant": "aggregated", "traffic": "L chat", "replicas": 4, "rate": 6.0}
    assert case["measured"] == pytest.approx(case["late"] + case["slow"])
    assert "aggregated, L chat, 4 replicas at 6/s each" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["--plants", "unheard of", "--out", str(file)])


def test_the_committed_result_has_all_cases_and_its_summary() -> None:
    root = Path(__file__).resolve().parents[4]
    written = json.loads((root / f"bench/results/{NAME}.json").read_text(encoding="utf-8"))
    cases = [FixedFleetCase(**entry["case"]) for entry in written["cases"]]
    assert cases == load_cases(PLANTS, REPLICAS, committed_rates())
    fleets: Sequence[FleetComparison] = [
        FleetComparison(
            case,
            entry["requests"],
            entry["late"],
            entry["slow"],
            PredictedShare(**entry["predicted"]),
            entry["rate_ratio"],
        )
        for case, entry in zip(cases, written["cases"], strict=True)
    ]
    assert all(fleet.requests >= 28_000 for fleet in fleets)
    summary = {row.metric: (row.value, row.holds) for row in summary_rows(fleets)}
    figures = {row["metric"]: (row["value"], row["holds"]) for row in written["rows"]}
    assert {metric: figures[metric] for metric in summary} == {
        metric: (pytest.approx(value), holds) for metric, (value, holds) in summary.items()
    }


FLEETS = [  # the second in `make test`
    ("aggregated", "S chat", 4, 1.335, 3.0),
    ("outside", "long-prompts", 32, 0.528, 2.0),
    ("aggregated", "L chat", 8, 6.122, 2.0),
    ("aggregated", "L chat", 16, 6.341, 2.0),
    ("outside", "long-prompts", 64, 0.498, 2.0),
]


def compared(plant: str, traffic: str, replicas: int, rate: float, requests: int = 8_000) -> FleetComparison:
    return compare_fleet(FixedFleetCase(plant, traffic, replicas, rate), requests=requests, seed=1)


@pytest.mark.parametrize(("plant", "traffic", "replicas", "rate", "factor"), shortened(FLEETS, FLEETS[1:2]))
def test_shares_of_some_percent_are_predicted_within_a_factor(
    plant: str, traffic: str, replicas: int, rate: float, factor: float
) -> None:
    outcome = compared(plant, traffic, replicas, rate, requests=shortened(8_000, 4_000))
    assert outcome.is_judged
    assert is_within(outcome.predicted.derived, outcome.measured, factor), outcome


@pytest.mark.nightly
def test_the_cliff_of_a_large_fleet_is_predicted_within_some_percent_of_the_rate() -> None:
    outcome = compared("aggregated", "S chat", 64, 1.449)
    assert outcome.is_judged
    assert is_within(outcome.predicted.derived, outcome.measured, 10.0), outcome
    assert 0.96 < outcome.rate_ratio < 1.04


@pytest.mark.nightly
def test_factors_mend_a_small_fleet_that_is_predicted_to_miss_too_much() -> None:
    outcome = compared("aggregated", "L chat", 4, 5.322, requests=20_000)
    assert outcome.is_judged
    assert outcome.predicted.learning > 0.8
    assert abs(outcome.predicted.corrected - outcome.measured) < abs(outcome.predicted.derived - outcome.measured)
    assert is_within(outcome.predicted.corrected, outcome.measured), outcome


def test_a_core_that_wants_more_replicas_learns_no_factor() -> None:
    outcome = compared("aggregated", "S chat", 16, 1.43, requests=shortened(8_000, 4_000))
    assert outcome.predicted.learning < 0.1
    assert outcome.predicted.corrected == pytest.approx(outcome.predicted.derived)
    assert outcome.predicted.sized > outcome.predicted.derived


@pytest.mark.nightly
def test_token_by_token_the_same_is_predicted() -> None:
    quick, exact = (compared(plant, "S chat", 4, 1.335, requests=1_200) for plant in ("aggregated", "token-level"))
    assert exact.measured == pytest.approx(quick.measured, rel=0.3)
    assert exact.predicted.derived == pytest.approx(quick.predicted.derived, rel=0.3)


def test_a_controller_that_predicts_changes_nothing() -> None:
    scenario = fixed_fleet_scenario(CASES["S chat"], 3, 2.0, requests=300)
    pools = tuple([replace(pool, facts=replace(pool.facts, maximum=50)) for pool in scenario.pools])
    controller = PredictingController(scenario.model, 2.0, 300.0)
    outcome = run_controller(replace(scenario, pools=pools), controller)
    assert {sample.desired for sample in outcome.samples} == {(3,)}
    assert controller.rate_of(0.5) > controller.rate_of(0.05) > controller.rate_of(0.005)


def test_the_rate_of_the_predicted_share_is_the_known_one() -> None:
    scenario = fixed_fleet_scenario(CASES["L chat"], 8, 48.0, requests=4_000)
    controller = PredictingController(scenario.model, 48.0, 300.0)
    run_controller(scenario, controller)
    assert controller.rate_of(controller.predicted().derived) == pytest.approx(1.0, abs=0.02)


def test_an_outside_fleet_is_fixed_and_has_the_lengths_of_its_family() -> None:
    case = FixedFleetCase("outside", "steady-chat", 6, 1.0)
    scenario = outside_fleet_scenario(case, requests=3_000, seed=1)
    [pool] = scenario.pools
    assert (pool.initial, pool.minimum, pool.maximum) == (6, 6, 6)
    log = scenario.requests
    assert sum(arrival >= 300.0 for arrival in log.arrivals) == pytest.approx(3_000, rel=0.15)
    assert sum(log.prompts) / len(log) == pytest.approx(1_144, rel=0.05)
    most = shortened(50_000, 10_000)
    many = outside_fleet_scenario(case, requests=most, seed=1)
    assert len(many.requests) > most
    assert many.requests.prompts[: len(log)] == log.prompts
