#!/usr/bin/env python3
"""Search for the cheapest schedules that keep 99 %, stored in
bench/fairlead_bench/autoscaler/offline_optima.json.

    python -m fairlead_bench.autoscaler.offline_optimum [SCENARIO ...] [--seed 1] [--runs 300]
                                                        [--traces FOLDER]

A day takes some minutes. A stored schedule stays unless the new one is cheaper.
"""

import argparse
import sys
import time
from pathlib import Path

from fairlead_sim.compiled import run_compiled

FILE = Path(__file__).with_name("offline_optima.json")


def main(arguments: list[str]) -> int:
    """Searches, compares and stores."""
    from fairlead_sim.autoscaling.offline_optimum import OptimumCache, replay_schedule, search_schedule
    from fairlead_sim.autoscaling.scenarios import ALL_SCENARIOS, SCENARIOS

    parser = argparse.ArgumentParser(description="Schedules with knowledge of the future.")
    parser.add_argument("scenarios", nargs="*", choices=[*ALL_SCENARIOS, []])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--traces", type=Path)
    given = parser.parse_args(arguments)
    for name in given.scenarios or SCENARIOS:
        scenario = ALL_SCENARIOS[name](given.seed, given.traces)
        begun = time.monotonic()
        before = OptimumCache(FILE).get(scenario)
        if before is not None:
            before = replay_schedule(scenario, before.steps)
        found = search_schedule(scenario, runs=given.runs)
        if before is None or not before.is_better_than(found):
            OptimumCache(FILE).put(scenario, found)
        was = "" if before is None else f", known {100 * before.attainment:.2f} % at {before.cost:.3f}"
        print(
            f"{name}: {100 * found.attainment:.2f} % at {found.cost:.3f}{was}; {time.monotonic() - begun:.0f} s",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    run_compiled()  # returns where it runs compiled already, or nothing is
    sys.exit(main(sys.argv[1:]))
