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

from operatorbench.measure import ROOT
from operatorbench.trials.common import Verdict
from operatorbench.trials.gone import away, silent
from operatorbench.trials.kills import STORY, kills
from operatorbench.trials.two import both_at_once, handing_over
from table import machine, versions

from fairlead_testing.kube.api_server import ApiServer, running_api_server

TEN_MINUTES, MINUTE = 600.0, 60.0
Trial = Callable[[ApiServer, Path], Awaitable[Verdict]]
TRIALS: Mapping[str, Trial] = {
    "two operators hand over for ten minutes": lambda server, logs: handing_over(server, TEN_MINUTES, logs),
    "two operators lead at once for ten minutes": lambda server, logs: both_at_once(server, TEN_MINUTES, logs),
    "the API server is away for a minute": lambda server, logs: away(server, MINUTE, logs),
    "watches are silent": lambda server, logs: silent(server, logs, children=True),
    "killed around every write, on the API server": lambda server, logs: kills(server, STORY, 20, logs),
}
MEMORY = "killed around every write, 20 seeds, in memory"


def main(arguments: Sequence[str]) -> int:
    """0 when everything holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*TRIALS, MEMORY], action="append")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "operator-soak.json")
    options = parser.parse_args(arguments)
    names = options.only or [*TRIALS, MEMORY]
    found = asyncio.run(_all([name for name in names if name in TRIALS]))
    if MEMORY in names:
        found[MEMORY] = _in_memory()
    before = json.loads(options.out.read_text())["trials"] if options.out.exists() else {}
    trials = {name: one for name in [*TRIALS, MEMORY] if (one := found.get(name) or before.get(name))}
    holds = len(trials) == len(TRIALS) + 1 and not any(one["broken"] for one in trials.values())
    content = {"machine": machine(), "versions": versions(), "holds": holds, "trials": trials}
    options.out.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=2, ensure_ascii=False))
    return 1 if any(found[name]["broken"] for name in found) else 0


async def _all(names: Sequence[str]) -> dict[str, Any]:
    """Side by side, each with an API server of its own: they wait most of the time."""
    found = await asyncio.gather(*(_one(name) for name in names))
    return dict(zip(names, found, strict=True))


async def _one(name: str) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        server = running_api_server(Path(folder) / "run")
        opened = await asyncio.to_thread(server.__enter__)
        try:
            verdict = await TRIALS[name](opened, Path(folder))
        except (AssertionError, TimeoutError) as error:
            verdict = Verdict(broken=[str(error)[-4_000:]])
        finally:
            await asyncio.to_thread(server.__exit__, None, None, None)
    return {"took_seconds": round(time.monotonic() - began, 1), **verdict.figures, "broken": verdict.broken}


def _in_memory() -> dict[str, Any]:
    """The enumeration of ``tests/operator/controller/test_crash.py``, which counts its kills."""
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
