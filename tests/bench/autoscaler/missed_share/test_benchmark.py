"""The benchmark of the predicted missed share: cases, rows, goals and the committed result."""

import json
from collections.abc import Sequence
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
    case_rows,
    committed_rates,
    is_within,
    load_cases,
    summary_rows,
)
from fairlead_bench.results import load_goals

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
    cases = [FixedFleetCase(**one["case"]) for one in written["cases"]]
    assert cases == load_cases(PLANTS, REPLICAS, committed_rates())
    fleets: Sequence[FleetComparison] = [
        FleetComparison(
            case,
            one["requests"],
            one["late"],
            one["slow"],
            PredictedShare(**one["predicted"]),
            one["rate_ratio"],
        )
        for case, one in zip(cases, written["cases"], strict=True)
    ]
    assert all(fleet.requests >= 28_000 for fleet in fleets)
    summary = {row.metric: (row.value, row.holds) for row in summary_rows(fleets)}
    found = {row["metric"]: (row["value"], row["holds"]) for row in written["rows"]}
    assert {metric: found[metric] for metric in summary} == {
        metric: (pytest.approx(value), holds) for metric, (value, holds) in summary.items()
    }
