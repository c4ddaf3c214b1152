#!/usr/bin/env python3
"""The fleet simulations of ``make nightly``: ten thousand seeds with faults; writes
bench/results/nightly-fleet.json.

    scripts/nightly_fleet.py [--seeds N] [--first SEED] [--jobs N] [--minutes M] [--out FILE]
    scripts/nightly_fleet.py --replay SEED       run one seed again, with its events

Safety is checked all the time, liveness after all faults have ended. A seed that breaks an
invariant is printed with the command that repeats it; the exit code is then 1. A compiled simulator
(``scripts/compile.py --sim``) gives equal results.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from fairlead.runtime.compiled_build import is_compiled
from fairlead_sim.compiled import run_compiled
from fairlead_sim.engine import scheduler
from fairlead_testing.fleet_faults.runner import RunReport, from_seed, run_seed
from fairlead_testing.reports import commit, machine

ROOT = Path(__file__).parents[1]
SEEDS = 10_000
_AT_ONCE = 10
_WRITTEN_EVERY = 500


def main() -> int:
    """Runs the seeds; returns 1 when an invariant is broken."""
    options = _options()
    run_compiled()
    if options.replay is not None:
        print(from_seed(options.replay).describe())
        again = run_seed(options.replay)
        print(again)
        if again.violations:
            print(again.describe())
        return 1 if again.violations else 0
    begun, nights = time.monotonic(), list[RunReport]()
    path = Path(options.out)
    seeds = range(options.first, options.first + options.seeds)
    with ProcessPoolExecutor(options.jobs) as pool:
        for one in pool.map(run_seed, seeds, chunksize=_AT_ONCE):
            nights.append(one)
            if one.violations:
                print(one.describe(), flush=True)
            seconds = time.monotonic() - begun
            over = len(nights) == len(seeds) or (options.minutes is not None and seconds > 60.0 * options.minutes)
            if over or len(nights) % _WRITTEN_EVERY == 0:
                _write(path, _result(options, nights, seconds))
            if over:
                pool.shutdown(cancel_futures=True)
                break
    return 1 if any(night.violations for night in nights) else 0


def _write(path: Path, result: dict[str, Any]) -> None:
    """Writes the results so far, so that an interrupted run leaves a report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['seeds']:,} seeds, {len(result['found'])} broken, {result['seconds']} s -> {path}", flush=True)


def _result(options: argparse.Namespace, nights: list[RunReport], seconds: float) -> dict[str, Any]:
    scenes = [from_seed(night.seed) for night in nights]
    happened = Counter[str]()
    for scene in scenes:
        happened.update([str(event.kind) for event in scene.fleet_events])
        happened.update({"partition": len(scene.partitions), "gateway killed": len(scene.kills)})
        happened.update({"spell of lost, late or doubled messages": len(scene.network_faults)})
    return {
        "machine": machine(),
        "commit": commit(ROOT),
        "compiled": is_compiled(scheduler.__file__),
        "first": options.first,
        "seeds": len(nights),
        "jobs": options.jobs,
        "seconds": round(seconds, 1),
        "fronts": dict(sorted(Counter([scene.router for scene in scenes]).items())),
        "presets": dict(sorted(Counter([scene.preset for scene in scenes]).items())),
        "happened": dict(sorted(happened.items())),
        "requests": sum([night.requests for night in nights]),
        "answers_cut": sum([night.cut for night in nights]),
        "requests_sent_again": sum([night.retried for night in nights]),
        "requests_without_any_engine": sum([night.unserved for night in nights]),
        "looks": sum([night.checks for night in nights]),
        "least_attainment_after": round(min([night.attainment_after for night in nights], default=0.0), 3),
        "found": [{"seed": night.seed, "broken": night.violations} for night in nights if night.violations],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fleets in trouble, by the thousand.")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many (10,000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once (every core)")
    parser.add_argument("--out", default=str(ROOT / "bench" / "results" / "nightly-fleet.json"), help="the report")
    parser.add_argument("--minutes", type=float, help="end then, with what has been played (no end)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="play one seed again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
