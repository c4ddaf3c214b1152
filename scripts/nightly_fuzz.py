#!/usr/bin/env python3
"""The fuzzers of ``make nightly``: ten million inputs over all targets, on every core; writes
bench/results/nightly.json.

    scripts/nightly_fuzz.py [--inputs N] [--jobs N] [--seed TEXT] [--out FILE] [--only TARGET ...]
    scripts/nightly_fuzz.py --replay TARGET FILE      try one input again, with the traceback

It fuzzes the compiled data plane when there is a copy of these sources (``make compile``), unless
FAIRLEAD_COMPILED=0. Equal seed and number of inputs give equal inputs. An input that breaks a
property is minimised, stored below out/fuzz and printed with the command that repeats it; the exit
code is then 1.
"""

import argparse
import json
import os
import secrets
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

from fuzzing.campaign import Report, campaign  # noqa: E402 - found through the line above
from fuzzing.targets import TARGETS  # noqa: E402

from fairlead.runtime.compiled_build import is_compiled, worker_environment  # noqa: E402
from fairlead_gateway.http import request_parser  # noqa: E402 - one of those that may be compiled
from fairlead_testing.reports import commit, machine  # noqa: E402

INPUTS = 10_000_000
_PART = 250_000
_KEPT = ROOT / "out" / "fuzz"


def main() -> int:
    """Runs the fuzzers; returns 1 when something was found."""
    options = _options()
    environ = worker_environment(os.environ)
    if environ != os.environ and not is_compiled(request_parser.__file__):
        os.execve(sys.executable, [sys.executable, *sys.argv], environ)
    if options.replay:
        name, file = options.replay
        print(f"{name}: {TARGETS[name].check(Path(file).read_bytes())}")
        return 0
    seed = options.seed or secrets.token_hex(4)
    shares = sum(TARGETS[name].share for name in options.only)
    batches = [
        (name, f"{seed}-{number}", min(_PART, target_inputs - number * _PART))
        for name in options.only
        for target_inputs in [round(options.inputs * TARGETS[name].share / shares)]
        for number in range(-(-target_inputs // _PART))
    ]
    mode = "compiled" if is_compiled(request_parser.__file__) else "interpreted"
    print(f"seed {seed}, {mode}: {options.inputs:,} inputs in {len(batches)} parts, {options.jobs} at once", flush=True)
    started, cpu_seconds = time.monotonic(), 0.0
    reports: list[Report] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for done in as_completed([pool.submit(part, *batch) for batch in batches]):
            report, seconds = done.result()
            reports.append(report)
            cpu_seconds += seconds
            _say(report, len(reports), len(batches))
    result = _result(seed, options.jobs, reports, time.monotonic() - started, cpu_seconds)
    path = Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['inputs']:,} inputs, {len(result['found'])} findings, {result['seconds']} s -> {path}")
    return 1 if result["found"] else 0


def part(name: str, seed: str, inputs: int) -> tuple[Report, float]:
    """Runs one batch in a process of its own; returns its report and the CPU seconds used."""
    before = time.process_time()
    report = campaign(TARGETS[name], seed, inputs, _KEPT)
    return report, time.process_time() - before


def _say(report: Report, number: int, parts: int) -> None:
    pace = report.seconds / max(1, report.inputs) * 1e6
    print(
        f"[{number}/{parts}] {report.target} {report.seed}: {report.inputs:,} inputs, {report.kinds:,} kinds, {pace:.0f} µs each"
    )
    for finding in report.findings:
        print(f"  FOUND {finding.where}\n    {finding.data!r}\n    {finding.replay}")
    sys.stdout.flush()


def _result(seed: str, jobs: int, reports: list[Report], seconds: float, used: float) -> dict[str, Any]:
    findings = {finding.where: finding for report in reports for finding in report.findings}
    targets = {}
    for name, target in TARGETS.items():
        own_reports = [report for report in reports if report.target == name]
        if not own_reports:
            continue
        targets[name] = {
            "what": target.what,
            "inputs": sum(report.inputs for report in own_reports),
            "kinds_of_answers_in_one_part": max((report.kinds for report in own_reports), default=0),
            "seconds": round(sum(report.seconds for report in own_reports), 1),
        }
    return {
        "machine": machine(),
        "commit": commit(ROOT),
        "compiled": is_compiled(request_parser.__file__),
        "seed": seed,
        "jobs": jobs,
        "inputs": sum(report.inputs for report in reports),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used, 1),
        "targets": targets,
        "found": [
            {"target": finding.target, "where": where, "replay": finding.replay}
            for where, finding in sorted(findings.items())
        ],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz everything that reads bytes from outside.")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="inputs over all targets (10,000,000)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once (every core)")
    parser.add_argument("--seed", help="the seed of an earlier run; else a new one")
    parser.add_argument("--out", default=str(ROOT / "bench" / "results" / "nightly.json"), help="the report")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), help="targets (all)")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"), help="try one input again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
