"""Requests and chunks a second of a gateway with 1, 2 and more workers, each kept busy on three
cores.

    python -m fairlead_bench gateway-workers [--workers 1,2,4] [--seconds 4]

Each worker has a load generator and an engine process with four ports. So the benchmark wants three
cores for each, and N workers choose among 4 N engines. The kernel spreads connections over workers.
A load generator sends as fast as it is answered.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fairlead_bench.gateway.load_cases import CASES, LoadCase, write_bodies
from fairlead_bench.gateway.measurement import MAX_WRONG_SHARE, bad_requests, counted_units, load_arguments
from fairlead_bench.gateway.native_programs import EngineGroup, MockEngine, NativePrograms, build
from fairlead_bench.gateway.target_process import start
from fairlead_bench.gateway.targets import FAIRLEAD, TARGETS, fairlead_command
from fairlead_bench.measurement_cache import print_progress
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results

NAME = "gateway-workers"
_ENGINES = 4
"""Ports of an engine process."""
_CASES = ("request-2k", "bulk")


@dataclass(frozen=True, slots=True)
class WorkerRun:
    """One run: units a second of all clients together, and processor time of the gateway's tree."""

    case: str
    workers: int
    round: int
    units_per_second: float
    cores: float


def main(arguments: Sequence[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    # 1, 2, 4 … as far as there are three cores for each worker; 1 and 2 at least
    usual = [1, 2, *[number for number in (4, 8, 16) if 3 * number <= (os.cpu_count() or 1)]]
    seconds = (4.0, "how long each run measures")
    given = parse_options(NAME, "Workers of a gateway.", arguments, workers=usual, rounds=3, seconds=seconds, seed=1)
    programs = build()
    runs: list[WorkerRun] = []
    for number in range(1, given.rounds + 1):
        for workers in given.workers:
            runs += measure_workers(programs, workers, number, given)
    more: dict[str, Any] = {"runs": [asdict(run) for run in runs]}
    write_results(NAME, list(worker_rows(runs)), seed=given.seed, file=given.out, more=more)
    return 0


def measure_workers(
    programs: NativePrograms, workers: int, number: int, given: argparse.Namespace
) -> Iterator[WorkerRun]:
    """Yields the runs of one gateway. Raises RuntimeError if requests fail."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fairlead-bench-")))
        engines = [stack.enter_context(MockEngine(programs.engine, ports=_ENGINES)) for _ in range(workers)]
        target = replace(TARGETS[FAIRLEAD], command=lambda place: fairlead_command(place, workers))
        gateway = start(target, EngineGroup(engines), folder, Path(sys.executable))
        stack.callback(gateway.stop)
        for name in _CASES:
            case = CASES[name]
            bodies = write_bodies(
                folder, case.size_bytes, seed=given.seed, max_tokens=case.events or 128, stream=bool(case.events)
            )
            command = [str(programs.load), *load_arguments(case, gateway.port), "--bodies", str(bodies)]
            command += ["--seconds", str(given.seconds)]
            before = gateway.usage()
            found = _run_loads([[*command, "--seed", str(given.seed * 1_000 + place)] for place in range(workers)])
            cores = (gateway.usage().cpu_seconds - before.cpu_seconds) / (given.seconds + case.warmup_seconds)
            run = WorkerRun(name, workers, number, _units_per_second(case, found), cores)
            print_progress(f"{workers} workers, {name}: {run.units_per_second:,.0f}/s, {cores:.2f} cores")
            yield run


def worker_rows(runs: Sequence[WorkerRun]) -> Iterator[ResultRow]:
    """Yields units a second by case and number of workers, its share of N times one worker, and the
    gateway's processor time for each unit. All are medians of rounds.
    """
    goals = load_goals(NAME)
    for case in dict.fromkeys(run.case for run in runs):
        own, unit = [run for run in runs if run.case == case], CASES[case].unit
        counts = dict.fromkeys(run.workers for run in own)
        rates = {workers: _median(run.units_per_second for run in own if run.workers == workers) for workers in counts}
        for workers, rate in rates.items():
            metric = f"{case}, workers: {workers}"
            yield goals.value(metric, f"{unit}s/s", rate)
            if workers > 1 and 1 in rates:
                yield goals.value(f"{metric}: ÷ {workers} × one", "ratio", rate / (workers * rates[1]))
            cpu = _median(run.cores / run.units_per_second * 1e6 for run in own if run.workers == workers)
            yield goals.value(f"{metric}: CPU per {unit}", "µs", cpu)


def _median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def _run_loads(commands: Sequence[Sequence[str]]) -> list[Mapping[str, Any]]:
    loads = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    return [json.loads(load.communicate()[0].splitlines()[-1]) for load in loads]


def _units_per_second(case: LoadCase, found: Sequence[Mapping[str, Any]]) -> float:
    bad = sum(map(bad_requests, found))
    requests = sum(report["requests"] for report in found)
    if bad > 1 + MAX_WRONG_SHARE * requests:
        raise RuntimeError(f"{bad} of {requests} requests failed or were answered wrongly")
    return sum([float(counted_units(case, report) / report["seconds"]) for report in found])
