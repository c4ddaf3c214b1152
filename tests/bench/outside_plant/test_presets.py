"""The comparison with presets: which runs count, and which value of a parameter is the best."""

import json
from pathlib import Path

import pytest

from fairlead_bench.autoscaler import measurement
from fairlead_bench.autoscaler.benchmark import TunedPreset
from fairlead_bench.autoscaler.measurement import FAIRLEAD, knob_values
from fairlead_bench.outside_plant import presets
from fairlead_bench.outside_plant.scenario import FAMILIES
from fairlead_testing.pytest_hooks.nightly import shortened
from tests.bench.outside_plant.test_benchmark import short_chat


def _cell(attainment: float, cost: float) -> dict[str, float]:
    return {"attainment": attainment, "servable": attainment, "cost": cost, "changes": 1.0}


def test_cost_is_compared_only_where_both_keep_the_target() -> None:
    ours = {"a 1": _cell(0.995, 8.0), "b 1": _cell(0.98, 1.0), "c 1": _cell(0.99, 18.0)}
    theirs = {"a 1": _cell(0.99, 16.0), "b 1": _cell(0.999, 9.0), "c 1": _cell(0.97, 2.0)}
    optima = {"a 1": 4.0, "b 1": None, "c 1": 4.5}
    rows = {row.metric: row for row in presets.preset_rows(ours, {TunedPreset("hpa-kv", 0.5, True): theirs}, optima)}
    assert rows[f"{FAIRLEAD}: of 3 runs keeps 99 % in"].value == 2
    compared = "hpa-kv at 0.5 (best): cost where both keep 99 % (1 runs), geometric mean: fairlead ÷ it"
    assert rows[compared].ratio == pytest.approx(0.5)
    assert rows["hpa-kv at 0.5 (best): cost ÷ offline optimum, geometric mean"].value == pytest.approx(
        (4 * 4 / 9) ** 0.5
    )


def test_run_measures_every_value_of_a_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measurement, "KNOBS", shortened(measurement.KNOBS, 2))
    monkeypatch.setitem(FAMILIES, "short-chat", short_chat)  # type: ignore[misc]
    file = tmp_path / "presets.json"
    arguments = ["--families", "short-chat", "--presets", "hpa-concurrency", "--jobs", "1", "--file", str(file)]
    assert presets.main(arguments) == 0
    table = json.loads(file.read_text(encoding="utf-8"))["table"]
    assert list(table[FAIRLEAD]) == ["short-chat 1"]
    assert {name.split(" (")[1] for name in table if name != FAIRLEAD} == {"best)", "fixed)"}
    cells = (tmp_path / "autoscaler-outside-cells.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(cells) == 1 + len(knob_values("hpa-concurrency"))


def test_only_the_usual_value_may_be_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(FAMILIES, "short-chat", short_chat)  # type: ignore[misc]
    file = tmp_path / "presets.json"
    arguments = ["--families", "short-chat", "--presets", "hpa-concurrency", "--values", "usual"]
    assert presets.main([*arguments, "--jobs", "1", "--file", str(file)]) == 0
    table = json.loads(file.read_text(encoding="utf-8"))["table"]
    assert list(table) == [FAIRLEAD, "hpa-concurrency at 14 (fixed)"]


def test_requests_that_no_start_could_have_served_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measures = {"attainment": 0.98, "servable": 0.995, "cost": 2.0, "changes": 1.0}
    monkeypatch.setattr(presets, "MeasurementCache", lambda *_, **__: lambda cells: dict.fromkeys(cells, measures))
    file = tmp_path / "presets.json"
    assert presets.main(["--families", "steady-chat", "--presets", "wva-saturation", "--file", str(file)]) == 0
    rows = {row["metric"]: row["value"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    assert rows[f"{FAIRLEAD}: of 1 runs keeps 99 % in"] == 1


def test_unknown_preset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        presets.main(["--presets", "hpa-nothing"])
    assert "no preset hpa-nothing; known are hpa-kv" in capsys.readouterr().err
