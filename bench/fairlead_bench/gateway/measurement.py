"""One run: a kind of load on one target, with CPU and memory taken at the moments at which the load
generator says so."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead_bench.gateway.load_cases import LoadCase
from fairlead_bench.gateway.native_programs import MockEngine
from fairlead_bench.gateway.target_process import ProcessUsage, TargetProcess
from fairlead_bench.gateway.targets import DIRECT, KEY

_CLIENTS_LEFT_SECONDS = 0.5
"""So long after the clients have left, no stream may be left at the engine."""
MAX_WRONG_SHARE = 0.001
"""A run with a larger share of failed or wrong answers measures something else."""
_MAX_NEW_CONNECTIONS_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class CaseRun:
    """The result of one run. ``cpu_microseconds`` is per unit; delays are those that the clients
    saw."""

    case: str
    target: str
    round: int
    seconds: float = 0.0
    units: int = 0
    cpu_microseconds: float | None = None
    core_share: float | None = None
    kernel_share: float | None = None
    rss_bytes: int | None = None
    rss_before_bytes: int | None = None
    delay: Mapping[str, float] = field(default_factory=dict)
    first_event: Mapping[str, float] = field(default_factory=dict)
    under_way: Mapping[str, float] = field(default_factory=dict)
    aborts: int = 0
    aborts_seen: int = 0
    streams_left: int = 0
    problems: tuple[str, ...] = ()

    @property
    def is_valid(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class LoadGenerator:
    """The load generator's command and its input. ``seed``: of all runs; each derives its own."""

    command: Sequence[str]
    bodies: Path
    seconds: float
    seed: int


@dataclass(frozen=True, slots=True)
class RunObservations:
    """The observations of one run.

    found: the report of the load generator.
    before, after: the engine's counters.
    usages: of the target, at the begin and the end of the measured time; empty without a target.
    """

    found: Mapping[str, Any]
    before: Mapping[str, int]
    after: Mapping[str, int]
    usages: Sequence[ProcessUsage]
    rss_before: int | None


def measure(
    case: LoadCase, target: TargetProcess | None, engine: MockEngine, load: LoadGenerator, *, number: int
) -> CaseRun:
    """Runs a case once. ``target``: None for the engine itself, without a gateway."""
    engine.set_pace(case.interval_seconds)
    before = engine.stats()
    rss_before = target.usage().rss_bytes if target is not None else None
    command = [*load.command, *load_arguments(case, target.port if target is not None else engine.ports[0])]
    command += ["--bodies", str(load.bodies), "--seconds", str(load.seconds)]
    command += ["--seed", str(load.seed * 1_000 + number)]
    usages: list[ProcessUsage] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        last = ""
        for line in process.stdout:
            if line.strip() in ("begin", "end"):
                if target is not None:
                    usages.append(target.usage())
            else:
                last = line
        complaint = process.stderr.read().strip()
    time.sleep(_CLIENTS_LEFT_SECONDS)
    name = target.target.name if target is not None else DIRECT
    if process.returncode != 0 or not last:
        return CaseRun(case.name, name, number, problems=(complaint or "the load generator failed",))
    observed = RunObservations(json.loads(last), before, engine.stats(), usages, rss_before)
    return summarize(case, name, number, observed)


def summarize(case: LoadCase, target: str, number: int, observed: RunObservations) -> CaseRun:
    """Returns the figures of a run."""
    found, before, after, usages = observed.found, observed.before, observed.after, observed.usages
    count = counted_units(case, found)
    cpu = kernel = None
    if len(usages) == 2:
        cpu = usages[1].cpu_seconds - usages[0].cpu_seconds
        kernel = usages[1].kernel_seconds - usages[0].kernel_seconds
    return CaseRun(
        case.name,
        target,
        number,
        seconds=found["seconds"],
        units=count,
        cpu_microseconds=cpu / count * 1e6 if cpu is not None and count else None,
        core_share=cpu / found["seconds"] if cpu is not None else None,
        kernel_share=min(1.0, kernel / cpu) if cpu and kernel is not None else None,
        rss_bytes=usages[-1].rss_bytes if usages else None,
        rss_before_bytes=observed.rss_before,
        delay=found["delay"],
        first_event=found["first_event"],
        under_way=found["under_way"],
        aborts=int(found["aborts"]),
        aborts_seen=min(int(found["aborts"]), after["aborted"] - before["aborted"]),
        streams_left=after["open"] - before["open"],
        problems=tuple(_problems(case, observed, count)),
    )


def _problems(case: LoadCase, observed: RunObservations, count: int) -> list[str]:
    """Returns the reasons why the run's figures cannot be used."""
    found, before, after, usages = observed.found, observed.before, observed.after, observed.usages
    problems = []
    bad = bad_requests(found)
    asked = max(1, after["requests"] - before["requests"])
    if bad > MAX_WRONG_SHARE * asked and bad > 1:
        status = f", status {found['status']}" if found["status"] else ""
        problems.append(f"{bad} of {asked} requests failed or were answered wrongly{status}")
    if count == 0:
        problems.append("nothing was measured")
    if case.mode == "hold" and found["opened"] < case.connections:
        problems.append(f"only {found['opened']} of {case.connections} streams opened")
    if len(usages) == 2 and usages[0].processes != usages[1].processes:
        problems.append("processes came or went meanwhile")
    connections = after["connections"] - before["connections"]
    if case.mode == "closed" and connections > case.connections * 2 + _MAX_NEW_CONNECTIONS_SHARE * asked:
        problems.append(f"engines were connected to {connections} times for {asked} requests: no connection is kept")
    return problems


def counted_units(case: LoadCase, found: Mapping[str, Any]) -> int:
    return int(found[{"request": "requests", "chunk": "events", "abort": "aborts_measured"}[case.unit]])


def bad_requests(found: Mapping[str, Any]) -> int:
    return int(found["errors"]) + int(found["wrong"]) + int(found["unfinished"])


def load_arguments(case: LoadCase, port: int) -> list[str]:
    """Returns the load generator's arguments for a case."""
    found = [case.mode, "--port", str(port), "--connections", str(case.connections), "--token", KEY]
    found += ["--warmup", str(case.warmup_seconds), "--events", str(case.checked_events)]
    if case.rate:
        found += ["--rate", str(case.rate)]
    if case.spread_seconds:
        found += ["--spread", str(case.spread_seconds)]
    return found
