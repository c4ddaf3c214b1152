"""Processor time and memory of the gateway, compared with Envoy, nginx and others."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from fairlead_bench.gateway.load_cases import (
    CASES,
    DECISION_SIZES,
    FULL,
    QUICK,
    WITH_KV_EVENTS,
    LoadCase,
    MeasurementPlan,
)
from fairlead_bench.gateway.load_cases import write_bodies as write_bodies
from fairlead_bench.gateway.measurement import CaseRun, LoadGenerator, measure
from fairlead_bench.gateway.native_programs import BuildError, MockEngine, NativePrograms, build, memory_load
from fairlead_bench.gateway.result_rows import RunConditions, decision_rows, print_report, rows, write
from fairlead_bench.gateway.routing_decision import decisions_seconds
from fairlead_bench.gateway.tail_latency import DecisionTails, measure_tail
from fairlead_bench.gateway.target_process import TargetDied, TargetProcess, start
from fairlead_bench.gateway.targets import (
    DIRECT,
    TARGETS,
    InstalledPeer,
    PeerUnavailable,
    Target,
    gateway_help,
    gateway_options,
    install_peer,
)
from fairlead_bench.results import write_results as write_alone

_ENGINES = 4
_INDEX_BLOCKS = 1_000_000
_START_ATTEMPTS = 3
_WIDTH = 200
_DECISION_KINDS = tuple([size + followed for size in DECISION_SIZES for followed in ("", WITH_KV_EVENTS)])


@dataclass
class BenchmarkSession:
    """Running targets, measured runs, and missing peers."""

    programs: NativePrograms
    engine: MockEngine
    folder: Path
    seed: int
    pinned: bool
    running: dict[str, TargetProcess] = field(default_factory=dict)
    peers: dict[str, InstalledPeer] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    idle_bytes: dict[str, float] = field(default_factory=dict)
    runs: list[CaseRun] = field(default_factory=list)

    @property
    def load_prefix(self) -> list[str]:
        """The command prefix that selects the load generator's core; empty where none is pinned."""
        return _on_core(0) if self.pinned else []

    def start_target(self, target: Target) -> TargetProcess | None:
        """Starts a target, and installs it if needed.

        A target that cannot be started is absent from then on.
        """
        why = "it does not start"
        try:
            program = Path(sys.executable)
            if target.peer is not None:
                self.peers[target.peer] = install_peer(target.peer)
                program = self.peers[target.peer].program
        except PeerUnavailable as error:
            self.absent[target.name] = str(error)
            return None
        prefix = _on_core((os.cpu_count() or 2) - 1) if self.pinned else []
        for _ in range(_START_ATTEMPTS):
            try:
                found = start(target, self.engine, self.folder, program, prefix=prefix)
            except PeerUnavailable as error:
                why = str(error)
                continue
            self.idle_bytes.setdefault(target.name, found.idle_rss_bytes)
            return found
        self.absent[target.name] = why
        return None

    def run_case(self, case: LoadCase, name: str, number: int, seconds: float) -> CaseRun | None:
        """Returns the figures of one run; None for an absent target."""
        if name == DIRECT:
            return self._measure(case, None, number, seconds)
        if case.fresh or name not in self.running:
            self.stop_target(name)
            found = self.start_target(TARGETS[name])
            if found is None:
                return None
            self.running[name] = found
            if case.fresh:
                self._measure(replace(CASES["request-2k"], connections=8), found, 0, 0.5)
        try:
            return self._measure(case, self.running[name], number, seconds)
        except TargetDied as error:
            del self.running[name]
            return CaseRun(case.name, name, number, problems=(str(error),))

    def stop_target(self, name: str) -> None:
        """Stops a target that runs."""
        found = self.running.pop(name, None)
        if found is not None:
            found.stop()

    def stop_all(self) -> None:
        for name in list(self.running):
            self.stop_target(name)

    def _measure(self, case: LoadCase, target: TargetProcess | None, number: int, seconds: float) -> CaseRun:
        bodies = write_bodies(
            self.folder, case.size_bytes, seed=self.seed, max_tokens=case.events or 128, stream=bool(case.events)
        )
        load = LoadGenerator([*self.load_prefix, str(self.programs.load)], bodies, seconds, self.seed)
        with memory_load(self.programs.memory_load, prefix=self.load_prefix) if case.crowded else nullcontext():
            return measure(case, target, self.engine, load, number=number)


def schedule(plan: MeasurementPlan, targets: Sequence[str]) -> Iterator[tuple[LoadCase, str, int]]:
    """Yields case after case, in rounds over all targets (A B C A B C …).

    Why: a slow minute of the machine meets all targets.
    """
    for name in plan.cases:
        case = CASES[name]
        taking_part = ([DIRECT] if case.direct else []) + [target for target in targets if target != DIRECT]
        for number in range(1, plan.rounds + 1):
            for target in taking_part:
                near = target == DIRECT or TARGETS[target].near
                if number <= plan.rounds_of(case, near_target=near):
                    yield case, target, number


def main(arguments: list[str]) -> int:
    """Measures, writes and prints. A goal that does not hold stays in the table.

    The exit code does not depend on the goals.
    """
    given = _options(arguments)
    plan = _plan(given)
    targets = _targets(given, plan)
    try:
        programs = build()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2
    if given.decisions:
        return _decisions(given.out.with_name("decision.json"), programs, given.seed)
    decisions, tails = _measure_decisions(programs, given.seed)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fairlead-bench-")))
        prefix = _on_core(0) if given.pin else []
        engine = stack.enter_context(MockEngine(programs.engine, ports=_ENGINES, prefix=prefix))
        session = BenchmarkSession(programs, engine, folder, given.seed, given.pin)
        stack.callback(session.stop_all)
        _run_schedule(session, plan, targets, console)
        if given.keep_logs is not None:
            _keep_logs(folder, given.keep_logs)
    found = rows(
        session.runs,
        idle_bytes=session.idle_bytes,
        decisions=decisions,
        tails=tails,
        absent=session.absent,
        cases=plan.cases,
    )
    settings = {
        "plan": "smoke" if given.smoke else "quick" if given.quick else "full",
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "pinned": given.pin,
        "keys_checked": "--keys" in gateway_options(gateway_help()),
        "load_average": os.getloadavg(),
    }
    peers = {name: peer.version for name, peer in session.peers.items()}
    write(given.out, found, session.runs, RunConditions(given.seed, settings, peers, session.absent))
    print_report(found, session.runs, session.absent, console)
    print(f"written: {given.out}")
    return 0


def _decisions(out: Path, programs: NativePrograms, seed: int) -> int:
    """Measures routing decisions alone, into a file of their own."""
    decisions, tails = _measure_decisions(programs, seed)
    write_alone("gateway, the decision alone", decision_rows(decisions, tails), seed=seed, file=out)
    return 0


def _measure_decisions(programs: NativePrograms, seed: int) -> tuple[dict[str, float | None], DecisionTails]:
    """Returns the seconds of decisions, and their tails on a calm and on a crowded machine."""
    decisions: dict[str, float | None] = {**decisions_seconds(_DECISION_KINDS, blocks=_INDEX_BLOCKS, seed=seed)}
    calm = measure_tail(blocks=_INDEX_BLOCKS, seed=seed)
    with memory_load(programs.memory_load):
        return decisions, DecisionTails(calm, measure_tail(blocks=_INDEX_BLOCKS, seed=seed))


def _run_schedule(session: BenchmarkSession, plan: MeasurementPlan, targets: Sequence[str], console: Console) -> None:
    for name in targets:
        if name not in session.running and (found := session.start_target(TARGETS[name])) is not None:
            session.running[name] = found
    for case, name, number in schedule(plan, targets):
        if name in session.absent:
            continue
        run = session.run_case(case, name, number, plan.seconds_of(case))
        if run is None:
            continue
        session.runs.append(run)
        shown = "–" if run.cpu_microseconds is None else f"{run.cpu_microseconds:.1f} µs"
        notes = "; ".join(run.problems)
        console.print(
            f"{case.name:13} {number} {name:46} {shown:>10} each, {run.units} in {run.seconds:.1f} s {notes}",
            highlight=False,
            markup=False,
        )


def _on_core(number: int) -> list[str]:
    return ["taskset", "-c", str(number)]


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fairlead_bench gateway", description="Cost of the gateway compared with its peers, in one run."
    )
    parser.add_argument("--quick", action="store_true", help="the near peers and the main cases only (1–2 minutes)")
    parser.add_argument("--smoke", action="store_true", help="as --quick, and the result says that it settles nothing")
    parser.add_argument("--decisions", action="store_true", help="the routing decision alone (a minute), decision.json")
    parser.add_argument("--targets", metavar="A;B", help=f"only these; known: {'; '.join(TARGETS)}")
    parser.add_argument("--cases", metavar="A,B", help=f"only these; known: {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, help="how often each run is repeated")
    parser.add_argument("--seconds", type=float, help="how long each run measures")
    parser.add_argument("--pin", action="store_true", help="targets on the last core, load and engine on the first")
    parser.add_argument("--keep-logs", type=Path, metavar="FOLDER", help="copy the targets' logs and settings there")
    parser.add_argument("--out", type=Path, default=Path("out/bench/gateway.json"))
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


def _plan(given: argparse.Namespace) -> MeasurementPlan:
    plan = QUICK if given.quick or given.smoke else FULL
    if given.cases:
        plan = replace(plan, cases=tuple(_require_known(given.cases.split(","), CASES, "case")))
    if given.rounds:
        plan = replace(plan, rounds=given.rounds, other_rounds=min(given.rounds, plan.other_rounds))
    if given.seconds:
        plan = replace(plan, seconds=given.seconds, other_seconds=given.seconds)
    return plan


def _targets(given: argparse.Namespace, plan: MeasurementPlan) -> list[str]:
    if given.targets:
        return _require_known(given.targets.split(";"), TARGETS, "target")
    return [
        name
        for name, target in TARGETS.items()
        if not target.asked_for and (plan.targets is None or name in plan.targets)
    ]


def _require_known(names: Sequence[str], known: Mapping[str, object], what: str) -> list[str]:
    stripped = [name.strip() for name in names]
    for name in stripped:
        if name not in known:
            sys.exit(f"no {what} is called {name!r}; known: {'; '.join(known)}")
    return stripped


def _keep_logs(folder: Path, wanted: Path) -> None:
    shutil.copytree(
        folder, wanted, dirs_exist_ok=True, ignore=shutil.ignore_patterns("bodies-*", "*_temp", "client_body")
    )
