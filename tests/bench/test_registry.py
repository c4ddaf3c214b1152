"""The benchmarks by name: each can be run, the goals belong to one, and arguments reach it."""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from fairlead_bench import __main__ as entry
from fairlead_bench.registry import BENCHMARKS, Benchmark
from fairlead_bench.results import GOALS
from fairlead_testing.yaml_documents import load_document

OTHERS = {"asleep", "decision", "cache-timing"}
"""Sections of goals whose benchmark has another name, or is a part of `e2e/vllm`."""


def test_every_benchmark_has_a_module() -> None:
    assert [benchmark.name for benchmark in BENCHMARKS.values() if find_spec(benchmark.module) is None] == []


def test_every_section_of_goals_belongs_to_a_benchmark() -> None:
    assert set(load_document(GOALS.read_text(encoding="utf-8"))) - OTHERS <= BENCHMARKS.keys()


def test_arguments_and_the_trace_reach_the_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.touch()
    received: list[list[str]] = []
    module = ModuleType("counted_benchmark")
    module.main = lambda arguments: received.append(arguments) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counted_benchmark", module)
    for name, option, folder in (("file", "--trace", False), ("folder", "--traces", True), ("none", None, False)):
        benchmark = Benchmark(name, "counted_benchmark", "", 1, trace_option=option, trace_folder=folder)
        monkeypatch.setitem(BENCHMARKS, name, benchmark)  # type: ignore[misc]
        assert entry.main(["--trace", str(trace), name, "--seed", "3"]) == 7
    assert received == [
        ["--trace", str(trace), "--seed", "3"],
        ["--traces", str(tmp_path), "--seed", "3"],
        ["--seed", "3"],
    ]


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(BENCHMARKS)
