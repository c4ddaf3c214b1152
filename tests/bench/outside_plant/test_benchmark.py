"""The benchmark: its seeds, its lines and rows, and the offline optimum that it compares with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.errors import BadInput
from fairlead_bench.judging_seeds import TUNING_SEEDS
from fairlead_bench.outside_plant import benchmark, scenario
from fairlead_bench.outside_plant.offline_optimum import (
    OfflineOptimum,
    OptimumFile,
    cut,
    fingerprint,
)
from fairlead_bench.outside_plant.plant import PlantOptions
from fairlead_bench.outside_plant.scenario import FAMILIES, MetricFault, MetricWindow, Scenario, noisy_chat
from fairlead_testing.pytest_hooks.nightly import shortened

JUDGING_FILE = Path(scenario.__file__).with_name("judging_seeds.json")


def short_chat(seed: int) -> Scenario:
    scenario = replace(cut(noisy_chat(seed), 0.0, shortened(600.0, 300.0)), shocks=(0.0,), family="short-chat")
    requests = scenario.requests
    for values in (requests.arrivals, requests.prompts, requests.answers):
        del values[::2]
    requests.reset()
    return scenario


def test_judging_seeds_are_those_of_the_written_rule() -> None:
    committed = json.loads(JUDGING_FILE.read_text(encoding="utf-8"))
    assert committed["seeds"] == scenario.judging_seeds()
    assert len(set(committed["seeds"])) == 20
    assert not set(committed["seeds"]) & set(TUNING_SEEDS)


@pytest.fixture(scope="module")
def optimum_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The optimum of a scenario, as it was searched and written."""
    file = tmp_path_factory.mktemp("optimum") / "optima.json"
    assert OptimumFile(file).find(short_chat(1), PlantOptions()) is not None
    return file


def test_optimum_keeps_its_share_and_is_cheaper_than_any_fixed_fleet(optimum_file: Path) -> None:
    scenario = short_chat(1)
    optimum = OptimumFile(optimum_file).find(scenario, PlantOptions(), may_search=False)
    assert optimum is not None
    steady = optimum.steady_replicas()["main"]
    assert steady is not None
    assert optimum.late_share <= 0.01 < optimum.late_by_size["main"][steady - 1]
    assert optimum.replica_hours <= steady * scenario.seconds / 3600.0


def test_known_optimum_is_searched_again_only_if_the_plant_changed(optimum_file: Path) -> None:
    file = optimum_file
    scenario, options = short_chat(1), PlantOptions()
    assert OptimumFile(file).find(scenario, options, may_search=False) is not None
    assert OptimumFile(file).find(scenario, PlantOptions("resident"), may_search=False) is None
    assert OptimumFile(file).find(replace(scenario, ttft=2.0), options, may_search=False) is None
    assert fingerprint(scenario, options) == fingerprint(scenario, PlantOptions(is_per_gap=True))


def test_cost_ratio_is_that_to_the_optimum() -> None:
    optimum = OfflineOptimum(2.0, 0.01, {"main": {3: 0.02, 4: 0.01}}, 1)
    run = benchmark.CoreMeasurement(
        family="short-chat",
        seed=1,
        gateway_rule="work",
        requests=1000,
        share=0.95,
        ttft_share=0.96,
        gap_share=0.99,
        unservable=50,
        abandoned=0,
        lost=0,
        replica_hours=3.0,
        changes_per_hour=4.0,
        max_desired=5,
        optimum=optimum,
        wall_seconds=1.0,
    )
    assert run.cost_ratio == 1.5
    assert run.servable_share == pytest.approx(1.0)
    assert "3.00 ÷   2.00 = 1.500" in run.describe()
    ratios = [row.ratio for row in benchmark.result_rows([run, run]) if row.ratio is not None]
    assert ratios == [1.5]


def test_setting_reaches_the_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(FAMILIES, "short-chat", short_chat)  # type: ignore[misc]
    arguments = ["--families", "short-chat", "--seeds", "1", "--no-optimum", "--file", str(tmp_path / "x.json")]
    with pytest.raises(BadInput, match="no_such_setting"):
        benchmark.main([*arguments, "--set", "no_such_setting=1"])


def test_unknown_family_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--families", "no-such-family"])
    assert "known are long-prompts" in capsys.readouterr().err


def test_window_of_faulty_metrics_has_a_share_of_its_own() -> None:
    scenario = replace(short_chat(1), windows=(MetricWindow(120.0, 180.0, MetricFault.MISSING),))
    arrivals = scenario.requests.arrivals
    late = [arrival < 120.0 or (arrival >= 480.0 and index % 2 == 0) for index, arrival in enumerate(arrivals)]
    assert benchmark._window_share(scenario, late) == 1.0
    late = [120.0 <= arrival < 480.0 for arrival in arrivals]
    assert benchmark._window_share(scenario, late) == 0.0
    assert benchmark._window_share(short_chat(1), late) is None
