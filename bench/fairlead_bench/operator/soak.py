"""The trials as long as the bar says, each with its figures and its verdict, in one JSON file."""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead_bench.operator.measurement import ROOT
from fairlead_bench.operator.trials.api_outage import run_api_outage, run_silent_api
from fairlead_bench.operator.trials.cluster_setup import TrialVerdict
from fairlead_bench.operator.trials.crash_points import STEPS, run_crash_points
from fairlead_bench.operator.trials.leader_handover import run_handovers, run_two_leaders
from fairlead_bench.results import machine, versions
from fairlead_testing.kube.api_server import ApiServer, running_api_server

TEN_MINUTES, MINUTE = 600.0, 60.0
TrialFunction = Callable[[ApiServer, Path], Awaitable[TrialVerdict]]
TRIALS: Mapping[str, TrialFunction] = {
    "two operators hand over for ten minutes": lambda server, logs: run_handovers(server, TEN_MINUTES, logs),
    "two operators lead at once for ten minutes": lambda server, logs: run_two_leaders(server, TEN_MINUTES, logs),
    "the API server is away for a minute": lambda server, logs: run_api_outage(server, MINUTE, logs),
    "watches are silent": lambda server, logs: run_silent_api(server, logs, children=True),
    "killed around every write, on the API server": lambda server, logs: run_crash_points(server, STEPS, 20, logs),
}
MEMORY = "killed around every write, 20 seeds, in memory"


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when all claims hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*TRIALS, MEMORY], action="append")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "operator-soak.json")
    options = parser.parse_args(arguments)
    names = options.only or [*TRIALS, MEMORY]
    found = asyncio.run(_run_trials([name for name in names if name in TRIALS]))
    if MEMORY in names:
        found[MEMORY] = _in_memory()
    before = json.loads(options.out.read_text())["trials"] if options.out.exists() else {}
    trials = {name: one for name in [*TRIALS, MEMORY] if (one := found.get(name) or before.get(name))}
    holds = len(trials) == len(TRIALS) + 1 and not any(one["broken"] for one in trials.values())
    content = {"machine": machine(), "versions": versions(), "holds": holds, "trials": trials}
    options.out.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=2, ensure_ascii=False))
    return 1 if any(found[name]["broken"] for name in found) else 0


async def _run_trials(names: Sequence[str]) -> dict[str, Any]:
    """Runs the trials in parallel, each with its own API server: they wait most of the time."""
    found = await asyncio.gather(*(_run_trial(name) for name in names))
    return dict(zip(names, found, strict=True))


async def _run_trial(name: str) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        server = running_api_server(Path(folder) / "run")
        opened = await asyncio.to_thread(server.__enter__)
        try:
            verdict = await TRIALS[name](opened, Path(folder))
        except (AssertionError, TimeoutError) as error:
            verdict = TrialVerdict(broken=[str(error)[-4_000:]])
        finally:
            await asyncio.to_thread(server.__exit__, None, None, None)
    return {"took_seconds": round(time.monotonic() - began, 1), **verdict.figures, "broken": verdict.broken}


def _in_memory() -> dict[str, Any]:
    """Runs the crash tests of ``tests/operator/controller/test_crash.py``; returns their kills."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        told = ("-q", "-o", "junit_family=xunit1", f"--junitxml={report}")  # the newer form has no place for our counts
        command = [sys.executable, "-m", "pytest", "tests/operator/controller/test_crash.py", *told]
        done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
        text = report.read_text() if report.exists() else ""
    counts = [int(value) for value in re.findall(r'name="kills" value="(\d+)"', text)]
    broken = [] if done.returncode == 0 else [done.stdout[-2_000:]]
    return {
        "took_seconds": round(time.monotonic() - began, 1),
        "seeds": len(counts),
        "kills": sum(counts),
        "broken": broken,
    }
