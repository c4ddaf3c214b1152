"""The autoscaler's property tests with many examples: which pass, and how many examples each drew.

    python -m fairlead_bench autoscaler-properties [--examples 10000]

Each test runs in a process of its own. The core is compiled, unless ``FAIRLEAD_COMPILED`` is 0 or
there is no C compiler.
"""

import os
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fairlead.runtime.compiled_build import is_compiled
from fairlead_autoscaler.core import learning
from fairlead_bench.measurement_cache import print_progress
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results

NAME = "autoscaler-properties"
ROOT = Path(__file__).resolve().parents[3]
TESTS = ROOT / "tests" / "autoscaler"
_PYTEST = (sys.executable, "-m", "pytest", "-m", "property", "-q", "--timeout", "0", "-p", "no:cacheprovider")
_DRAWN = re.compile(r"(\d+) passing, \d+ failing,")
_ALL_CASES = "nothing left to do"


@dataclass(frozen=True, slots=True)
class PropertyRun:
    """The result of one test. ``is_exhausted``: there are no other cases."""

    passed: bool
    examples: int
    is_exhausted: bool = False


def main(arguments: Sequence[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    given = parse_options(
        NAME,
        "The autoscaler's property tests with many examples.",
        arguments,
        examples=(10000, "of each test"),
        only=("", "tests whose name contains it"),
    )
    command = [*_PYTEST, "--collect-only", str(TESTS)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    runs = {test: run_test(test, given.examples) for test in listed.splitlines() if "::" in test and given.only in test}
    more = {
        "compiled": is_compiled(learning.__file__),
        "tests": {test: asdict(run) for test, run in runs.items()},
    }
    write_results(NAME, property_rows(runs.values(), given.examples), seed=1, file=given.out, more=more)
    return 0


def run_test(test: str, examples: int) -> PropertyRun:
    """Runs one test in a process."""
    command = [*_PYTEST, "--hypothesis-seed", "1", "--hypothesis-show-statistics", test]
    environ = {**os.environ, "FAIRLEAD_EXAMPLES": str(examples), "FAIRLEAD_NIGHTLY": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if ended.returncode:
        print_progress(ended.stdout[-6_000:])
    run = PropertyRun(not ended.returncode, *parse_examples(ended.stdout))
    print_progress(f"{test}: {run.examples} examples, passed {run.passed}")
    return run


def parse_examples(output: str) -> tuple[int, bool]:
    """Returns the passing examples that Hypothesis counted, and whether these are all cases."""
    return sum(int(found[1]) for found in _DRAWN.finditer(output)), _ALL_CASES in output


def property_rows(runs: Collection[PropertyRun], examples: int) -> list[ResultRow]:
    """Returns the rows: tests that passed with all examples, that failed, and that drew fewer."""
    passed = [run for run in runs if run.passed]
    done = sum(run.is_exhausted or run.examples >= examples for run in passed)
    counts = {
        f"property tests that pass with {examples} examples": done,
        f"property tests that fail with {examples} examples": len(runs) - len(passed),
        f"property tests with fewer than {examples} examples": len(passed) - done,
    }
    goals = load_goals(NAME)
    return [goals.value(metric, "tests", float(count)) for metric, count in counts.items()]
