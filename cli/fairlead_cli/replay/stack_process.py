"""A local stack for one measurement: ``fairlead up`` as a child process, and a check that nothing
of it is left.

The child is tied to this process as engines are tied to their supervisor: whatever ends this
process ends the stack.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import msgspec

from fairlead.errors import FairleadError, Unavailable
from fairlead.fleet import file as fleetfile
from fairlead.fleet.model import Fleet, Instance, InstanceState, Model
from fairlead_cli.local.processes.reaper import Reaper
from fairlead_cli.local.run_directory import STATE_FILE, RunningStack

_CHILD_EXEC = Path(__file__).parents[1] / "local" / "processes" / "child_exec.py"
_POLL_SECONDS = 0.05
_TAIL_LINES = 15


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
        self._runtime = options.log.with_suffix(".run").resolve()
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
        """Addresses of the running stack."""
        assert self.running_stack is not None
        return self.running_stack

    def fleet(self) -> Fleet:
        """Returns the fleet that the gateway reads."""
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
