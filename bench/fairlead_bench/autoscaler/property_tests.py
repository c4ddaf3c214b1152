"""The autoscaler's property tests with many examples: which pass, and how many examples each drew.

    python -m fairlead_bench autoscaler-properties [--examples 10000] [--minutes N]

Each test runs in a process of its own, in parts with a seed each. Results are stored at once in
``out/bench/autoscaler-properties-runs.jsonl``, under a digest of the sources, so that a later call
goes on. Tests that took least in earlier calls with fewer examples run first. The core is compiled,
unless ``FAIRLEAD_COMPILED`` is 0 or there is no C compiler.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fairlead_autoscaler
from fairlead.runtime.compiled_build import is_compiled, sources_digest
from fairlead_autoscaler.core import scaling_core
from fairlead_bench.measurement_cache import print_progress
from fairlead_bench.results import ResultRow, load_goals, value_row, write_results

NAME = "autoscaler-properties"
ROOT = Path(__file__).resolve().parents[3]
TESTS = ROOT / "tests" / "autoscaler"
_PYTEST = ("-m", "pytest", "-m", "property", "-q", "--timeout", "0", "-p", "no:cacheprovider")
_DRAWN = re.compile(r"(\d+) passing, \d+ failing,")
_ALL_CASES = "nothing left to do"


@dataclass(frozen=True, slots=True)
class PropertyRun:
    """One part of one test.

    - state: digest of the sources.
    - part: the number of the part, which seeds the draws.
    - requested: the setting; some tests draw twice as many.
    - examples: those that passed.
    - is_exhausted: there are no other cases.
    """

    state: str
    test: str
    part: int
    requested: int
    passed: bool
    examples: int
    is_exhausted: bool
    seconds: float


def main(arguments: Sequence[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    parser = argparse.ArgumentParser(description="The autoscaler's property tests with many examples.")
    parser.add_argument("--examples", type=int, default=10_000, help="of each test")
    parser.add_argument("--part", type=int, help="examples of a part; default: all in one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--only", default="", metavar="TEXT", help="tests whose name contains it")
    parser.add_argument("--out", type=Path, default=Path(f"out/bench/{NAME}.json"))
    given = parser.parse_args(arguments)
    deadline = time.monotonic() + 60.0 * given.minutes
    file, state = given.out.with_name(f"{NAME}-runs.jsonl"), _state()
    runs = [run for run in _stored_runs(file) if run.state == state]
    tests = collect_tests()
    for test in _shortest_first([test for test in tests if given.only in test], runs):
        while (missing := given.examples - drawn_examples(test, runs)) > 0:
            requested = min(given.part or given.examples, missing)
            run = _run_part(state, test, next_part(test, runs), requested, deadline - time.monotonic())
            if run is None:
                break
            runs.append(run)
            _store_run(file, run)
            print_progress(f"{test}: {run.examples} examples, passed {run.passed}, {run.seconds:.0f} s")
            if not (run.passed and run.examples):
                break
    more: dict[str, Any] = {
        "compiled": is_compiled(scaling_core.__file__),
        "tests": {test: _summary(test, runs, given.examples) for test in tests},
    }
    write_results(NAME, property_rows(more["tests"], given.examples), seed=1, file=given.out, more=more)
    return 0


def collect_tests() -> list[str]:
    """Returns the names of all property tests of the autoscaler."""
    command = [sys.executable, *_PYTEST, "--collect-only", str(TESTS)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "::" in line]


def drawn_examples(test: str, runs: Iterable[PropertyRun]) -> float:
    """Returns how many examples of a test passed; infinite if all cases or a failure were found."""
    own = [run for run in runs if run.test == test]
    if any(run.is_exhausted or not run.passed for run in own):
        return float("inf")
    return sum(run.examples for run in own)


def next_part(test: str, runs: Iterable[PropertyRun]) -> int:
    """Returns the number of a test's next part, from 1."""
    return 1 + max((run.part for run in runs if run.test == test), default=0)


def parse_examples(output: str) -> tuple[int, bool]:
    """Returns the passing examples that Hypothesis counted, and whether these are all cases."""
    return sum(int(found[1]) for found in _DRAWN.finditer(output)), _ALL_CASES in output


def property_rows(tests: Mapping[str, Mapping[str, Any]], examples: int) -> list[ResultRow]:
    """Returns the rows: tests that passed with all examples, that failed, and that are not done."""
    goals = load_goals(NAME)
    counts = {
        f"property tests that pass with {examples} examples": sum(test["is_done"] for test in tests.values()),
        f"property tests that fail with {examples} examples": sum(not test["passed"] for test in tests.values()),
        f"property tests with fewer than {examples} examples": sum(
            test["passed"] and not test["is_done"] for test in tests.values()
        ),
    }
    return [value_row(metric, "tests", float(count), goals.get(metric)) for metric, count in counts.items()]


def _summary(test: str, runs: Sequence[PropertyRun], examples: int) -> dict[str, Any]:
    own = [run for run in runs if run.test == test]
    passed = all(run.passed for run in own)
    return {
        "passed": passed,
        "examples": sum(run.examples for run in own),
        "all_cases": any(run.is_exhausted for run in own),
        "parts": len(own),
        "seconds": round(sum(run.seconds for run in own), 1),
        "is_done": passed and drawn_examples(test, own) >= examples,
    }


def _run_part(state: str, test: str, part: int, requested: int, limit_seconds: float) -> PropertyRun | None:
    """Runs one part; returns None if it does not end within the limit."""
    command = [sys.executable, *_PYTEST, "--hypothesis-seed", str(part)]
    environ = {**os.environ, "FAIRLEAD_EXAMPLES": str(requested), "FAIRLEAD_NIGHTLY": "1"}
    begun = time.monotonic()
    try:
        ended = subprocess.run(
            [*command, "--hypothesis-show-statistics", test],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=None if limit_seconds == float("inf") else max(0.0, limit_seconds),
        )
    except subprocess.TimeoutExpired:
        return None
    if ended.returncode:
        print_progress(ended.stdout[-6_000:])
    examples, is_exhausted = parse_examples(ended.stdout)
    seconds = time.monotonic() - begun
    return PropertyRun(state, test, part, requested, not ended.returncode, examples, is_exhausted, seconds)


def _shortest_first(tests: Sequence[str], runs: Sequence[PropertyRun]) -> list[str]:
    """Returns the tests by the seconds of an example, of those that ran; the others are first."""

    def example_seconds(test: str) -> float:
        own = [run for run in runs if run.test == test]
        return sum(run.seconds for run in own) / max(1, sum(run.examples for run in own))

    return sorted(tests, key=example_seconds)


def _state() -> str:
    return sources_digest([*map(Path, fairlead_autoscaler.__path__), TESTS])


def _stored_runs(file: Path) -> list[PropertyRun]:
    if not file.exists():
        return []
    return [PropertyRun(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def _store_run(file: Path, run: PropertyRun) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stored:
        stored.write(json.dumps(asdict(run)) + "\n")
