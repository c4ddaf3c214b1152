"""Property tests with many examples: what is counted, and what a later call goes on with."""

import json
from pathlib import Path

import pytest

from fairlead_bench.autoscaler import property_tests
from fairlead_bench.autoscaler.property_tests import PropertyRun, drawn_examples, next_part, parse_examples

STATISTICS = """
  - during generate phase (0.50 seconds):
    - Typical runtimes: ~ 0-1 ms, of which < 1ms in data generation
    - {passing} passing, 0 failing, and 3 invalid test cases
  - Stopped because {reason}
"""
TEST = "tests/autoscaler/collector/test_counter_deltas.py"


def run(test: str, part: int, examples: int, *, passed: bool = True, is_exhausted: bool = False) -> PropertyRun:
    return PropertyRun("state", test, part, examples, passed, examples, is_exhausted, 1.0)


def test_examples_are_those_that_hypothesis_counts() -> None:
    assert parse_examples(STATISTICS.format(passing=200, reason="settings.max_examples=200")) == (200, False)
    assert parse_examples(STATISTICS.format(passing=12, reason="nothing left to do")) == (12, True)


def test_parts_add_up_and_a_failure_or_the_last_case_ends_a_test() -> None:
    runs = [run("a", 1, 200), run("b", 1, 10, is_exhausted=True), run("a", 2, 300), run("c", 1, 5, passed=False)]
    assert [drawn_examples(test, runs) for test in "abcd"] == [500, float("inf"), float("inf"), 0]
    assert [next_part(test, runs) for test in "ad"] == [3, 1]


@pytest.mark.nightly
def test_a_later_call_draws_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = [name for name in property_tests.collect_tests() if name.startswith(TEST)]
    assert tests
    monkeypatch.setattr(property_tests, "collect_tests", lambda: [tests[0], "tests/nowhere.py::test_other"])
    file = tmp_path / "properties.json"
    for examples in (20, 50):
        arguments = ["--examples", str(examples), "--only", tests[0], "--out", str(file)]
        assert property_tests.main(arguments) == 0
    report = json.loads(file.read_text(encoding="utf-8"))
    found, other = report["tests"].values()
    assert (found["parts"], found["examples"], found["is_done"]) == (2, 50, True)
    assert (other["parts"], other["passed"], other["is_done"]) == (0, True, False)
    assert [row["value"] for row in report["rows"]] == [1.0, 0.0, 1.0]
