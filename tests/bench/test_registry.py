"""The registry of benchmarks, and the goals of their rows."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fairlead_bench import __main__ as entry
from fairlead_bench.registry import BENCHMARKS, PARTS, BenchmarkPart
from fairlead_bench.results import GOALS, load_goals
from fairlead_testing.yaml_documents import load_document

OTHERS = {"asleep", "decision", "cache-timing"}
"""Sections of goals whose benchmark has another name, or is a part of `e2e/vllm`."""


def test_a_subject_has_one_benchmark_and_there_are_16_at_most() -> None:
    assert len(BENCHMARKS) <= 16
    assert len(PARTS) == sum(map(len, BENCHMARKS.values()))


def test_every_part_has_a_module_with_a_summary() -> None:
    assert [part.name for part in PARTS.values() if not part.summary()] == []


def test_every_section_of_goals_belongs_to_a_part() -> None:
    assert set(load_document(GOALS.read_text(encoding="utf-8"))) - OTHERS <= PARTS.keys()


def test_arguments_and_the_trace_reach_the_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.touch()
    received: list[list[str]] = []
    module = ModuleType("fairlead_bench.counted")
    module.main = lambda arguments: received.append(arguments) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, option in (("file", "--trace"), ("folder", "--traces"), ("none", None)):
        monkeypatch.setitem(PARTS, name, BenchmarkPart(name, "counted", 1, trace_option=option))  # type: ignore[misc]
        assert entry.main(["--trace", str(trace), name, "--seed", "3"]) == 7
    assert received == [
        ["--trace", str(trace), "--seed", "3"],
        ["--traces", str(tmp_path), "--seed", "3"],
        ["--seed", "3"],
    ]


def test_the_list_names_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--list"]) == 0
    listed = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert listed == [[subject, part.name] for subject, parts in BENCHMARKS.items() for part in parts]


RESULTS = Path(__file__).parents[2] / "bench" / "results"
THRESHOLDS = ("canary", "fairness", "fallbacks")
"""Benchmarks that are a nightly test: runs with thresholds, which compare no products."""
RECORDED = (
    *THRESHOLDS,
    *("autoscaler", "gateways", "index", "mix", "operator"),
    *("quota", "sharing"),
)


@pytest.mark.parametrize("name", RECORDED)
def test_committed_results_have_a_row_for_each_goal(name: str) -> None:
    rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    assert {row["metric"]: row["goal"] for row in rows if row["goal"] is not None} == load_goals(name)
    if name in THRESHOLDS:
        assert [row["metric"] for row in rows if not row["holds"]] == []


@pytest.mark.nightly
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("name", THRESHOLDS)
def test_thresholds_hold(name: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    subprocess.run([sys.executable, "-m", "fairlead_bench", name, "--out", str(file)], check=False)
    missed = [row["metric"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"] if not row["holds"]]
    assert missed == []
