"""A local stack for the length of one measurement: ``fairlead up`` as a child process, and proof that nothing of it stays.

The child hangs on the same leash as the engines hang on it: whatever ends this process ends the stack.
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

_CHILD_EXEC = Path(__file__).parents[1] / "local" / "leash.py"
_POLL_SECONDS = 0.05
_TAIL_LINES = 15


class LeftoverProcesses(FairleadError):
    """Raised when processes of a stopped stack were still there; they have been killed."""


@dataclass(frozen=True, slots=True)
class MeasuredStackOptions:
    """What ``fairlead up`` is asked for."""

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
    """A context manager: ready inside, gone afterwards. Entering raises Unavailable, leaving LeftOver."""

    def __init__(self, wish: MeasuredStackOptions) -> None:
        self._wish = wish
        self._runtime = wish.log.with_suffix(".run").resolve()
        self._guard: Reaper | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.running_stack: RunningStack | None = None

    def __enter__(self) -> Self:
        self._guard = Reaper(None)
        try:
            self._start(self._guard)
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = self._stop()
        if left and error is None:
            raise LeftoverProcesses(f"{len(left)} processes of the stack outlived it and were killed: {sorted(left)}")

    @property
    def addresses(self) -> RunningStack:
        """Addresses of the running stack."""
        assert self.running_stack is not None
        return self.running_stack

    def fleet(self) -> Fleet:
        """The fleet as the gateway reads it."""
        file = Path(self.addresses.fleet_file)
        return fleetfile.parse_fleet_file(file.read_text(encoding="utf-8"), file=file.name)

    def only_model(self) -> tuple[Model, tuple[Instance, ...]]:
        """The one model of a stack that serves one, with its instances."""
        fleet = self.fleet()
        ((key, model),) = fleet.models.items()
        return model, fleet.instances.get(key, ())

    def _start(self, guard: Reaper) -> None:
        wish = self._wish
        up = [sys.executable, "-m", "fairlead_cli", "up", str(wish.manifest), "--preset", wish.preset, "--plain"]
        up += ["--listen", "127.0.0.1:0", "--manage", "127.0.0.1:0", "--speed", f"{wish.speed:g}", "--no-redis"]
        up += ["--engines-per-process", str(wish.engines_per_process), "--logs", str(wish.log.with_suffix(""))]
        self._runtime.mkdir(parents=True, exist_ok=True)
        with wish.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_CHILD_EXEC), str(guard.fd), str(os.getpid()), *up],
                # A runtime directory of its own: `fairlead chat` and others take the newest stack they find, and this
                # one is being measured.
                env={**os.environ, "FAIRLEAD_HASH_SECRET": wish.secret, "XDG_RUNTIME_DIR": str(self._runtime)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(guard.fd,),
                start_new_session=True,
            )
        guard.add(self._process.pid)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        end = time.monotonic() + self._wish.start_seconds
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while not self._ready(client):
                if self._process.poll() is not None:
                    raise Unavailable(f"fairlead up ended with {self._process.returncode}: {self._last_words()}")
                if time.monotonic() > end:
                    raise Unavailable(
                        f"the stack was not ready after {self._wish.start_seconds:g} s: {self._last_words()}"
                    )
                time.sleep(_POLL_SECONDS)

    def _ready(self, client: httpx.Client) -> bool:
        assert self._process is not None
        if self.running_stack is None:
            self.running_stack = self._announced()
        if self.running_stack is None:
            return False
        try:
            if client.get(f"{self.running_stack.manage}/readyz").status_code != 200:
                return False
            instances = client.get(f"{self.running_stack.manage}/api/fleet").json()["models"][0]["instances"]
        except (httpx.HTTPError, ValueError, KeyError, IndexError):
            return False
        # The gateway's own view counts: the fleet file may be a moment ahead of it.
        ready = [one for one in instances if one["state"] == InstanceState.READY.value]
        return len(ready) == self._wish.engines

    def _announced(self) -> RunningStack | None:
        """What the stack tells of itself in its run directory, once it does."""
        for file in self._runtime.glob(f"fairlead/up-*/{STATE_FILE}"):
            try:
                return msgspec.json.decode(file.read_bytes(), type=RunningStack)
            except (OSError, ValueError):
                return None  # gone or half written: it is looked at again
        return None

    def _last_words(self) -> str:
        lines = self._wish.log.read_text(errors="replace").splitlines() if self._wish.log.exists() else []
        return "\n".join(lines[-_TAIL_LINES:]) or "it said nothing"

    def _stop(self) -> set[int]:
        """End everything; the pids that had to be killed because they outlived the stack."""
        left: set[int] = set()
        if self._process is not None:
            family = _descendants(self._process.pid)
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(self._wish.stop_seconds)
            except subprocess.TimeoutExpired:
                left.add(self._process.pid)
                self._process.kill()
                self._process.wait()
            left |= _kill_survivors(family)
        if self._guard is not None:
            if self._process is not None:
                self._guard.remove(self._process.pid)
            self._guard.close()
        shutil.rmtree(self._runtime, ignore_errors=True)
        return left


def _kill_survivors(family: set[tuple[int, str]], patience_seconds: float = 5.0) -> set[int]:
    """Kill what of ``family`` is still there after ``patience_seconds``; those pids."""
    end = time.monotonic() + patience_seconds
    while (left := _live_pids(family)) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return left


def _live_pids(family: set[tuple[int, str]]) -> set[int]:
    now = {(pid, born) for pid, (_, born) in _processes().items()}
    return {pid for pid, _ in family & now}


def _descendants(pid: int) -> set[tuple[int, str]]:
    """(pid, when it was born) of every process below ``pid``: a pid alone may soon mean somebody else."""
    every = _processes()
    found: set[int] = set()
    fresh = {pid}
    while fresh:
        fresh = {child for child, (parent, _) in every.items() if parent in fresh} - found
        found |= fresh
    return {(child, every[child][1]) for child in found}


def _processes() -> dict[int, tuple[int, str]]:
    """pid → (parent, birth) of all living processes: from /proc where there is one, else as ``ps`` says."""
    if Path("/proc/self/stat").exists():
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                except OSError:
                    continue  # it ended while we looked
                if words[0] not in "ZX":
                    found[int(entry.name)] = (int(words[1]), words[19])
        return found
    listed = subprocess.run(["ps", "-axo", "pid=,ppid=,stat=,lstart="], capture_output=True, text=True, check=False)
    return _parse_ps(listed.stdout.splitlines())


def _parse_ps(lines: Sequence[str]) -> dict[int, tuple[int, str]]:
    found = {}
    for line in lines:
        words = line.split(None, 3)
        if len(words) == 4 and not words[2].startswith("Z"):
            found[int(words[0])] = (int(words[1]), words[3])
    return found
