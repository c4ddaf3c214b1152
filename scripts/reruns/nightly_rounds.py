"""Runs all tests several times in random order on busy processors, and counts those that are red
by chance.

    nightly_rounds.py [--rounds N] [--seed N]   writes bench/results/nightly_flaky.json

A test that fails runs once more alone: if it passes then, it was red by chance. `flaky.json` in
`tests/repository` has how often each test may be so; it may only shrink. Exits with 1 when
a test fails twice, or is red by chance more often than the table says.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from scripts.reruns import second_try

ROOT: Final = Path(__file__).parents[2]
RESULT: Final = ROOT / "bench" / "results" / "nightly_flaky.json"
KNOWN: Final = ROOT / "tests" / "repository" / "flaky.json"
MAX_FAILED: Final = 50
"""More failures than this are a fault, and no chance."""


@contextmanager
def busy_processors() -> Iterator[None]:
    """Keeps as many processes busy as there are processors, until the block ends."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def failures_of_round(seed: int, jobs: int) -> tuple[list[str], list[str]]:
    """Runs all tests in the order of a seed. Returns those that failed once, and those that failed
    twice.
    """
    second_try.FAILED.unlink(missing_ok=True)
    order = os.environ | {"FAIRLEAD_TEST_ORDER": str(seed)}
    command = [sys.executable, "-m", "pytest", "-q"]
    subprocess.run([*command, "--processes", str(jobs)], cwd=ROOT, env=order, check=False)
    failed = second_try.failed_tests()
    if len(failed) > MAX_FAILED:
        return [], failed
    again = {name: subprocess.run([*command, name], cwd=ROOT, check=False).returncode for name in failed}
    return [name for name in failed if again[name] == 0], [name for name in failed if again[name] != 0]


def excesses(flaky: Counter[str], known: dict[str, int]) -> list[str]:
    """Returns the tests that are red by chance more often than is known, with both counts."""
    return [
        f"{name}: {count}, known {known.get(name, 0)}"
        for name, count in sorted(flaky.items())
        if count > known.get(name, 0)
    ]


def main() -> int:
    """Runs the rounds, and writes what they found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    flaky: Counter[str] = Counter()
    red: set[str] = set()
    with busy_processors():
        for seed in range(options.seed, options.seed + options.rounds):
            once, twice = failures_of_round(seed, options.jobs)
            flaky.update(once)
            red.update(twice)
    found = {"rounds": options.rounds, "seed": options.seed, "flaky": dict(sorted(flaky.items())), "red": sorted(red)}
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    new = excesses(flaky, json.loads(KNOWN.read_text()))
    print(*(f"red twice: {name}" for name in sorted(red)), *(f"red by chance: {line}" for line in new), sep="\n")
    return 1 if red or new else 0


if __name__ == "__main__":
    sys.exit(main())
