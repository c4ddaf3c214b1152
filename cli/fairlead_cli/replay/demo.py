"""``fairlead demo``: real traffic through a real stack under several presets, with a report.

Each preset gets a new, cold stack. A run with doubts, such as loop lag, is repeated with simulated
time at half the speed: the same lag of a busy machine then matters half as much. The presets after
it begin at that speed. The simulator gets the same requests, instances and hash secret, so that it
computes the same homes.

The child is tied to this process as engines are tied to their supervisor: whatever ends this
process ends the stack.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import httpx
import msgspec
from cyclopts import Parameter

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import FairleadError, Unavailable
from fairlead.fleet import file as fleetfile
from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, SloTargets
from fairlead.runtime.clock import Clock, SystemClock
from fairlead.units import format_duration
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_cli.local.run_directory import STATE_FILE, RunningStack
from fairlead_cli.replay.client.open_loop_client import ReplayResult
from fairlead_cli.replay.command import GatewayTarget, Measurement, TooBusy, measure
from fairlead_cli.replay.fleet_simulation import FleetSimulation, timing_doubts, transport_seconds
from fairlead_cli.replay.report.report import PolicyResult, ReplayReport, RunSummary, publish
from fairlead_cli.replay.traffic import (
    PromptBuilder,
    ReplayTarget,
    ReplayTraffic,
    load_traffic,
    plan_requests,
    prefix_chains,
)
from fairlead_sim.engine.tokenizer import Tokenizer

MIN_SPEED = 0.2
"""Simulated seconds in one second: time runs no slower."""

MANIFEST_TEMPLATE = """\
# What `fairlead demo` serves: eight simulated engines of the profile that the routing studies use.
apiVersion: serving.fairlead.io/v1alpha1
kind: AcceleratorClass
metadata: {{name: npu-910b4}}
spec:
  profile: {{preset: {profile}}}
---
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {{name: demo}}
spec:
  model: {{uri: "hf://Qwen/Qwen2.5-7B-Instruct"}}
  pools:
    - acceleratorClassName: npu-910b4
      minReplicas: {engines}
  slo: {{ttft: {ttft:g}s, tpot: {itl:g}s}}
"""

_CHILD_EXEC = Path(__file__).parents[1] / "local" / "processes" / "child_exec.py"
_POLL_SECONDS = 0.05
_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The options as given."""

    trace: Annotated[
        Path | None,
        Parameter(help="A trace in Mooncake's format. Default: 1,000 requests of its conversation trace, bundled."),
    ] = None
    out: Annotated[Path, Parameter(help="Where the report goes.")] = Path("out/demo")
    limit: Annotated[int, Parameter(help="How many requests of at most 20,480 prompt tokens, from the start.")] = 400
    rate: Annotated[float, Parameter(help="Mean arrivals per simulated second.")] = 6.5
    light_rate: Annotated[
        float, Parameter(help="Mean arrivals per simulated second of a light load, simulated too.")
    ] = 1.0
    speed: Annotated[float, Parameter(help="Simulated seconds in one second; halved on a busy machine.")] = 2.0
    presets: Annotated[tuple[str, ...], Parameter(help="Routing presets to compare.", consume_multiple=True)] = (
        "dual-hash",
        "round-robin",
        "least-request",
    )


_DEFAULTS = DemoOptions()
_START_SECONDS, _TAIL_SECONDS = 12.0, 60.0
"""For starting and simulating a stack, in wall seconds; for the last answers, in simulated ones."""


def demo(*, options: Annotated[DemoOptions, Parameter(name="*")] = _DEFAULTS) -> int:
    """Replay a trace under several routing presets, live and simulated, and write the comparison.

    Exits 0 when all requests were answered; 1 when requests failed; 2 when a stack could not be
    started or stopped.

    It takes about four minutes on two processors. On a busier machine, simulated time runs slower,
    and it takes longer. Only where that does not help either, the report says "valid": false, and
    so does the last line.
    """
    from fairlead_cli.console import stdout_console
    from fairlead_sim.workload.traces import BUNDLED_TRACE

    console = stdout_console()
    traffic = load_traffic(options.trace or BUNDLED_TRACE, limit=options.limit, rate=options.rate)
    console.print(
        f"traffic: {traffic.name}, {len(traffic.requests)} requests at {traffic.rate:g} simulated requests/s",
        highlight=False,
    )
    comparison = PresetComparison(
        traffic=traffic,
        presets=options.presets,
        profile=builtin_profile("910b4"),
        engines=8,
        objectives=SloTargets(ttft_seconds=5.0, itl_seconds=0.3),
        speed=options.speed,
        light_rate=options.light_rate,
        folder=options.out,
    )
    report = comparison.run(lambda line: console.print(line, highlight=False), SystemClock())
    return publish(report, options.out, console)


@dataclass(frozen=True, slots=True)
class PresetComparison:
    """The presets and traffic to compare. Rates and latency targets are in simulated seconds."""

    traffic: ReplayTraffic
    presets: Sequence[str]
    profile: EngineProfile
    engines: int
    objectives: SloTargets
    speed: float
    light_rate: float
    folder: Path
    secret: str = "fairlead demo"

    def run(self, on_progress: Callable[[str], None], clock: Clock) -> ReplayReport:
        """Runs all presets one after the other. Raises Unavailable or LeftoverProcesses when a
        stack fails to start or stop.
        """
        builder = PromptBuilder(Tokenizer())
        policies: dict[str, PolicyResult] = {}
        light: dict[str, PolicyResult] = {}
        lags: dict[str, float | None] = {}
        invalid: list[str] = []
        light_traffic = self.traffic.with_rate(self.light_rate)
        speed, seconds = self.speed, self._expected_seconds(self.speed)
        for number, preset in enumerate(self.presets):
            left = format_duration(60.0 * max(1, round(seconds * (len(self.presets) - number) / 60.0)))
            on_progress(f"{preset}, {number + 1} of {len(self.presets)} presets, about {left} left")
            live, speed = self._measure_valid(preset, speed, builder, on_progress)
            started = clock.now()
            feedback_delay = transport_seconds(live.measurement.results, live.rerun)
            median_run = live.simulation.run_median(self.traffic.requests, feedback_delay_seconds=feedback_delay)
            light_results = live.simulation.run(light_traffic.requests, feedback_delay_seconds=feedback_delay)
            policies[preset] = PolicyResult(*map(self._summarize, (live.measurement.results, median_run, live.rerun)))
            light[preset] = PolicyResult(simulated=self._summarize(light_results))
            lags |= {f"{preset}: {name}": lag for name, lag in live.measurement.lags.items()}
            invalid += [f"{preset}: {doubt}" for doubt in live.doubts]
            seconds = _START_SECONDS + live.measurement.wall_seconds + clock.now() - started
        return ReplayReport(
            trace=self.traffic.name,
            objectives=self.objectives,
            speed=speed,
            rate=self.traffic.rate,
            requests=len(self.traffic.requests),
            policies=policies,
            lags=lags,
            invalid_reasons=invalid,
            ideal_reuse=self.traffic.ideal_reuse,
            light_rate=self.light_rate,
            light=light,
        )

    def _expected_seconds(self, speed: float) -> float:
        return _START_SECONDS + (len(self.traffic.requests) / self.traffic.rate + _TAIL_SECONDS) / speed

    def _measure_valid(
        self, preset: str, speed: float, builder: PromptBuilder, on_progress: Callable[[str], None]
    ) -> "tuple[_LiveMeasurement, float]":
        """Measures at ever slower simulated time until no doubt is left; also returns its speed."""
        while True:
            is_last = speed / 2 < MIN_SPEED
            try:
                live = self._measure(preset, speed, builder, on_progress, ends_early=None if is_last else 2.0)
                if is_last or not live.doubts:
                    return live, speed
                doubt = live.doubts[0]
            except TooBusy as error:
                doubt = str(error)
            speed /= 2
            on_progress(f"{preset}: {doubt}; once more with {speed:g} simulated seconds in one: the machine is busy")

    def _measure(
        self,
        preset: str,
        speed: float,
        builder: PromptBuilder,
        on_progress: Callable[[str], None],
        *,
        ends_early: float | None,
    ) -> "_LiveMeasurement":
        """Replays the traffic once on a new stack, and simulates it on the choices of that run."""
        options = MeasuredStackOptions(
            manifest=self.write_manifest(),
            preset=preset,
            speed=speed,
            secret=self.secret,
            log=self.folder / f"up-{preset}.log",
            engines=self.engines,
        )
        with MeasuredStack(options) as stack:
            model, instances = stack.only_model()
            target = ReplayTarget(stack.addresses.url, model=model.name)
            planned = plan_requests(self.traffic.requests, target, speed=speed, builder=builder)
            measurement = measure(
                target,
                planned,
                GatewayTarget(stack.addresses.url, model.key, stack.addresses.manage, instances=instances),
                speed=speed,
                title=preset,
                ends_early=ends_early,
            )
        errors = [result.error for result in measurement.results if result.error is not None]
        if errors:
            on_progress(f"{preset}: {len(errors)} of {len(planned)} requests failed, the first with: {errors[0]}")
        simulation = self._simulation(preset, instances, model.key, builder)
        return _LiveMeasurement(
            measurement, simulation, simulation.run_on_choices(self.traffic.requests, measurement.results)
        )

    def _simulation(
        self, preset: str, instances: Sequence[Instance], key: str, builder: PromptBuilder
    ) -> FleetSimulation:
        secret = self.secret.encode()
        return FleetSimulation(
            profile=self.profile,
            instance_ids=[instance.id for instance in instances],
            preset=preset,
            objectives=self.objectives,
            secret=secret,
            chain=prefix_chains(builder, secret=secret, model_key=key),
        )

    def _summarize(self, results: Sequence[ReplayResult]) -> RunSummary:
        return RunSummary.from_results(results, objectives=self.objectives, instances=self.engines)

    def write_manifest(self) -> Path:
        """Writes the manifest of the stack into the folder of the report."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "model.yaml"
        file.write_text(
            MANIFEST_TEMPLATE.format(
                profile=self.profile.name,
                engines=self.engines,
                ttft=self.objectives.ttft_seconds,
                itl=self.objectives.itl_seconds,
            ),
            encoding="utf-8",
        )
        return file


@dataclass(frozen=True, slots=True)
class _LiveMeasurement:
    """A measurement, a simulation of its fleet, and simulated results on the measured choices."""

    measurement: Measurement
    simulation: FleetSimulation
    rerun: Sequence[ReplayResult]

    @property
    def doubts(self) -> list[str]:
        return [*self.measurement.doubts, *timing_doubts(self.measurement.results, self.rerun)]


class LeftoverProcesses(FairleadError):
    """Raised when processes of a stopped stack were left; they have been killed."""


@dataclass(frozen=True, slots=True)
class MeasuredStackOptions:
    """Options of a measured stack.

    speed: simulated seconds in one second.

    start_seconds, stop_seconds: how long the start and the end may take.
    """

    manifest: Path
    preset: str
    speed: float
    secret: str
    log: Path
    engines: int
    engines_per_process: int = 4
    start_seconds: float = 90.0
    stop_seconds: float = 30.0


class MeasuredStack:
    """A local stack as a context manager: ready inside, ended afterwards.

    Entering raises Unavailable when the stack does not start. Leaving raises LeftoverProcesses.
    """

    def __init__(self, options: MeasuredStackOptions) -> None:
        self._options = options
        # Of this process alone: a second demo in the folder must not end this one's stack.
        self._runtime = options.log.with_suffix(f".{os.getpid()}.run").resolve()
        self._reaper: Reaper | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.running_stack: RunningStack | None = None

    def __enter__(self) -> Self:
        self._reaper = Reaper(None)
        try:
            self._start(self._reaper)
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        survivors = self._stop()
        if survivors and error is None:
            raise LeftoverProcesses(
                f"{len(survivors)} processes of the stack outlived it and were killed: {sorted(survivors)}"
            )

    @property
    def addresses(self) -> RunningStack:
        assert self.running_stack is not None
        return self.running_stack

    def fleet(self) -> Fleet:
        file = Path(self.addresses.fleet_file)
        return fleetfile.parse_fleet_file(file.read_text(encoding="utf-8"), file=file.name)

    def only_model(self) -> tuple[Model, tuple[Instance, ...]]:
        """Returns the stack's only model with its instances."""
        fleet = self.fleet()
        ((key, model),) = fleet.models.items()
        return model, fleet.instances.get(key, ())

    def _start(self, reaper: Reaper) -> None:
        options = self._options
        command = [sys.executable, "-m", "fairlead_cli", "up", str(options.manifest), "--plain", "--no-redis"]
        command += ["--listen", "127.0.0.1:0", "--manage", "127.0.0.1:0"]
        command += ["--preset", options.preset, "--speed", f"{options.speed:g}"]
        command += ["--engines-per-process", str(options.engines_per_process)]
        command += ["--logs", str(options.log.with_suffix(""))]
        self._runtime.mkdir(parents=True, exist_ok=True)
        with options.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_CHILD_EXEC), str(reaper.fd), str(os.getpid()), *command],
                # Its own runtime directory, so that `fairlead chat` does not find this stack.
                env={**os.environ, "FAIRLEAD_HASH_SECRET": options.secret, "XDG_RUNTIME_DIR": str(self._runtime)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(reaper.fd,),
                start_new_session=True,
            )
        reaper.add(self._process.pid)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._options.start_seconds
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while not self._is_ready(client):
                if self._process.poll() is not None:
                    raise Unavailable(f"fairlead up ended with {self._process.returncode}: {self._last_lines()}")
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"the stack was not ready after {self._options.start_seconds:g} s: {self._last_lines()}"
                    )
                time.sleep(_POLL_SECONDS)

    def _is_ready(self, client: httpx.Client) -> bool:
        assert self._process is not None
        if self.running_stack is None:
            self.running_stack = self._read_stack_file()
        if self.running_stack is None:
            return False
        try:
            if client.get(f"{self.running_stack.manage}/readyz").status_code != 200:
                return False
            instances = client.get(f"{self.running_stack.manage}/api/fleet").json()["models"][0]["instances"]
        except (httpx.HTTPError, ValueError, KeyError, IndexError):
            return False
        # The gateway's own view counts: the fleet file may be a moment ahead of it.
        ready = [instance for instance in instances if instance["state"] == InstanceState.READY.value]
        return len(ready) == self._options.engines

    def _read_stack_file(self) -> RunningStack | None:
        """Returns the stack file from the run directory; None before the stack has written it."""
        for file in self._runtime.glob(f"fairlead/up-*/{STATE_FILE}"):
            try:
                return msgspec.json.decode(file.read_bytes(), type=RunningStack)
            except (OSError, ValueError):
                return None  # gone or half written: the next poll reads it again
        return None

    def _last_lines(self) -> str:
        lines = self._options.log.read_text(errors="replace").splitlines() if self._options.log.exists() else []
        return "\n".join(lines[-_TAIL_LINES:]) or "it said nothing"

    def _stop(self) -> set[int]:
        """Ends the stack; returns the pids of processes that outlived it and were killed."""
        survivors: set[int] = set()
        if self._process is not None:
            descendants = _descendants(self._process.pid)
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(self._options.stop_seconds)
            except subprocess.TimeoutExpired:
                survivors.add(self._process.pid)
                self._process.kill()
                self._process.wait()
            survivors |= _kill_survivors(descendants)
        if self._reaper is not None:
            if self._process is not None:
                self._reaper.remove(self._process.pid)
            self._reaper.close()
        shutil.rmtree(self._runtime, ignore_errors=True)
        return survivors


def _kill_survivors(processes: set[tuple[int, str]], patience_seconds: float = 5.0) -> set[int]:
    """Kills the processes that are still there after ``patience_seconds``; returns their pids."""
    deadline = time.monotonic() + patience_seconds
    while (survivors := _live_pids(processes)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for pid in survivors:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return survivors


def _live_pids(processes: set[tuple[int, str]]) -> set[int]:
    live = {(pid, started) for pid, (_, started) in _list_processes().items()}
    return {pid for pid, _ in processes & live}


def _descendants(pid: int) -> set[tuple[int, str]]:
    """Returns (pid, start time) of every process below ``pid``; a pid alone may be reused."""
    all_processes = _list_processes()
    pids: set[int] = set()
    new_pids = {pid}
    while new_pids:
        new_pids = {child for child, (parent, _) in all_processes.items() if parent in new_pids} - pids
        pids |= new_pids
    return {(child, all_processes[child][1]) for child in pids}


def _list_processes() -> dict[int, tuple[int, str]]:
    """Returns pid → (parent, start time) of all living processes, from /proc or from ``ps``."""
    if Path("/proc/self/stat").exists():
        processes = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                except OSError:
                    continue  # it ended meanwhile
                if fields[0] not in "ZX":
                    processes[int(entry.name)] = (int(fields[1]), fields[19])
        return processes
    ps = subprocess.run(["ps", "-axo", "pid=,ppid=,stat=,lstart="], capture_output=True, text=True, check=False)
    return _parse_ps(ps.stdout.splitlines())


def _parse_ps(lines: Sequence[str]) -> dict[int, tuple[int, str]]:
    processes = {}
    for line in lines:
        fields = line.split(None, 3)
        if len(fields) == 4 and not fields[2].startswith("Z"):
            processes[int(fields[0])] = (int(fields[1]), fields[3])
    return processes
