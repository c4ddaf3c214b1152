"""The judge of canaries in simulated traffic: how often it is wrong, and how fast it is right.

    python -m fairlead_bench canary [--out out/bench/canary.json] [--seeds 1000]

The canary gets one request a second and the running revision nine, in conversations. After each
interval of 15 s the judge looks, from the second minute on. The seeds differ from those of the
development.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from fairlead_bench.canary.traffic import INTERVAL_SECONDS, SimulatedRevision, simulate
from fairlead_bench.results import ResultRow, load_goals, value_row, write_results
from fairlead_operator.canary.judge import Verdict, judge
from fairlead_operator.canary.observer import SETTLE_SECONDS

_FIRST_SEED = 10_000
_PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class CanaryCase:
    """A canary, and for how long it is judged.

    running_rate: requests a second to the running revision; the canary gets one.
    """

    revision: SimulatedRevision
    minutes: float = 10.0
    running_rate: float = 9.0


HEALTHY: Mapping[str, CanaryCase] = {
    "the same revision": CanaryCase(SimulatedRevision(), 30.0),
    "the same revision, half of the traffic": CanaryCase(SimulatedRevision(), 30.0, 1.0),
    "2 % slower": CanaryCase(SimulatedRevision(ttft=1.02, tpot=1.02), 30.0),
    "answers 5 % longer": CanaryCase(SimulatedRevision(length=1.05), 30.0),
}
REGRESSIONS: Mapping[str, CanaryCase] = {
    "20 % slower": CanaryCase(SimulatedRevision(ttft=1.2, tpot=1.2)),
    "TTFT 20 % higher": CanaryCase(SimulatedRevision(ttft=1.2)),
    "TPOT 20 % higher": CanaryCase(SimulatedRevision(tpot=1.2)),
    "TPOT 20 % higher, half of the traffic": CanaryCase(SimulatedRevision(tpot=1.2), running_rate=1.0),
    "TPOT 30 % higher": CanaryCase(SimulatedRevision(tpot=1.3)),
    "answers twice as long": CanaryCase(SimulatedRevision(length=2.0)),
    "answers half as long": CanaryCase(SimulatedRevision(length=0.5)),
    "5 % errors": CanaryCase(SimulatedRevision(errors=0.05)),
    "2 % errors": CanaryCase(SimulatedRevision(errors=0.02), 20.0),
}


def rollback_minutes(case: CanaryCase, seed: int) -> float | None:
    """Returns the minutes until a canary is rolled back; None if it is not."""
    count = int(case.minutes * 60.0 / INTERVAL_SECONDS)
    intervals = list(islice(simulate(seed, case.revision, running_rate=case.running_rate), count))
    settled = intervals[int(SETTLE_SECONDS / INTERVAL_SECONDS) :]
    if judge(settled, is_complete=True).verdict is not Verdict.ROLLBACK:
        return None
    low, high = 0, len(settled)  # evidence does not go away, so the first look can be searched
    while high - low > 1:
        middle = (low + high) // 2
        is_found = judge(settled[:middle], is_complete=True).verdict is Verdict.ROLLBACK
        low, high = (low, middle) if is_found else (middle, high)
    return (high * INTERVAL_SECONDS + SETTLE_SECONDS) / 60.0


def canary_rows(goals: Mapping[str, str], seeds: Iterable[int]) -> list[ResultRow]:
    """Returns the rows of all cases."""
    drawn = list(seeds)
    rows = []
    for name, case in HEALTHY.items():
        wrong = sum(rollback_minutes(case, seed) is not None for seed in drawn) / len(drawn)
        metric = f"rolled back within {case.minutes:.0f} min: {name}"
        rows.append(value_row(metric, "%", _PERCENT * wrong, goals.get(metric)))
    for name, case in REGRESSIONS.items():
        found = [minutes for seed in drawn if (minutes := rollback_minutes(case, seed)) is not None]
        metric = f"found within {case.minutes:.0f} min: {name}"
        rows.append(value_row(metric, "%", _PERCENT * len(found) / len(drawn), goals.get(metric)))
        metric = f"median time until it is found: {name}"
        rows.append(value_row(metric, "min", median(found) if found else None, goals.get(metric)))
    return rows


def main(arguments: list[str]) -> int:
    """Returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m fairlead_bench canary", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench/canary.json"))
    parser.add_argument("--seeds", type=int, default=1_000, help="how many seeds")
    options = parser.parse_args(arguments)
    rows = canary_rows(load_goals("canary"), range(_FIRST_SEED, _FIRST_SEED + options.seeds))
    write_results("canary", rows, seed=_FIRST_SEED, file=options.out)
    return int(not all(row.holds for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
