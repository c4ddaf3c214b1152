"""Record of what a running cluster started and changed on this machine, written before it happens,
so that ``down`` undoes exactly that.

A process is known by its id and the moment it started: an id that was given to another process
since is left alone.

A cluster that runs, as its users see it.

Progress messages of the cluster's commands, and their error.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.release.release_run import ReleaseError, print_progress, progress_step

__all__ = ["ClusterError", "print_progress", "progress_step"]

STOP_SECONDS = 5.0
"""From SIGTERM to SIGKILL. An API server whose etcd is gone would wait for much longer."""


class ClusterError(ReleaseError):
    """Raised for problems with a cluster that the user can mend; the message says how."""


class RunRecord:
    """The record of one run folder."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._path = run / "record.json"
        self._held: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def __bool__(self) -> bool:
        return self._path.exists()

    def update(self, **facts: Any) -> None:
        """Write facts down; whole or not at all."""
        self._held |= facts
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._held, indent=1))
        partial.replace(self._path)

    def get(self, name: str, otherwise: Any = None) -> Any:
        return self._held.get(name, otherwise)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def log(self, name: str) -> Path:
        return self.run / f"{name}.log"

    def start(self, name: str, command: Sequence[str | Path], environ: dict[str, str] | None = None) -> None:
        """Starts a process in its own session, with its output in a file. It outlives its parent
        and inherits no open file: a lock of the caller would be held for as long as the cluster is
        up."""
        out = os.open(self.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            streams: list[tuple[int, ...]] = [
                (os.POSIX_SPAWN_DUP2, source, number) for source, number in ((nothing, 0), (out, 1), (out, 2))
            ]
            streams += [(os.POSIX_SPAWN_CLOSE, number) for number in _inherited()]
            words = [str(word) for word in command]
            pid = os.posix_spawnp(words[0], words, environ or os.environ, file_actions=streams, setsid=True)
        finally:
            os.close(out)
            os.close(nothing)
        self.update(processes=self.get("processes", {}) | {name: [pid, start_time(pid)]})

    def is_alive(self, name: str) -> bool:
        pid, moment = self.get("processes", {}).get(name, (0, None))
        return moment is not None and start_time(pid) == moment

    def pids(self) -> dict[str, int]:
        return {name: pid for name, (pid, _) in self.get("processes", {}).items() if self.is_alive(name)}

    def stop(self, name: str) -> None:
        """SIGTERM, patience, SIGKILL. Nothing where it does not run."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.is_alive(name):
                return
            if number == signal.SIGKILL:
                print_progress(f"  {name} did not stop within {STOP_SECONDS:g} s and is killed")
            os.kill(self.get("processes")[name][0], number)
            end = time.monotonic() + STOP_SECONDS
            while self.is_alive(name) and time.monotonic() < end:
                time.sleep(0.02)

    def forget(self, *names: str) -> None:
        kept = {name: entry for name, entry in self.get("processes", {}).items() if name not in names}
        self.update(processes=kept)

    def wait(self, what: str, seconds: float, holds: Callable[[], bool]) -> None:
        """Until it holds; gives up at once when a process of ours has died, with the end of its
        log."""
        end = time.monotonic() + seconds
        while not holds():
            for name in self.get("processes", {}):
                if not self.is_alive(name):
                    raise ClusterError(f"{name} died:\n{self.log(name).read_text(errors='replace')[-3_000:]}")
            if time.monotonic() > end:
                raise ClusterError(f"{what}: not within {seconds:g} s; logs in {self.run}")
            time.sleep(0.05)


def _inherited() -> list[int]:
    """Open files beyond the standard ones that a new process would have too."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            if number > 2 and os.get_inheritable(number):
                found.append(number)
        except OSError:  # the folder itself, which was open while it was read
            continue
    return found


def start_time(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; none where there is no such process, or only
    its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """A running cluster in the folder ``run``, with its programs."""

    run: Path
    binaries: Path

    @property
    def kubeconfig(self) -> Path:
        return self.run / "admin.kubeconfig"

    def shell_line(self) -> str:
        return f"export KUBECONFIG={self.kubeconfig} PATH={self.binaries}:$PATH"

    def environ(self) -> dict[str, str]:
        """For commands that talk to it; what they cache goes when the cluster goes."""
        names = ("KUBECACHEDIR", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
        caches = {name: str(self.run / "cache") for name in names}
        path = f"{self.binaries}:{os.environ['PATH']}"
        return os.environ | caches | {"KUBECONFIG": str(self.kubeconfig), "PATH": path}

    def command(self, *words: str, given: str | None = None) -> None:
        """Run a command that talks to it. Raises ClusterError with what it complains of."""
        self.output(*words, given=given)

    def command_eventually(self, *words: str, seconds: float, given: str | None = None) -> None:
        """Runs a command until it succeeds. Raises ClusterError with its last complaint after so
        long."""
        end = time.monotonic() + seconds
        while True:
            try:
                return self.command(*words, given=given)
            except ClusterError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    def output(self, *words: str, given: str | None = None) -> str:
        """Returns what such a command prints. Raises ClusterError with what it complains of."""
        done = subprocess.run(words, env=self.environ(), input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{' '.join(words[:3])} failed:\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}")
        return done.stdout

    def apply(self, *manifests: dict[str, Any]) -> None:
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        self.command("kubectl", "apply", "-f", "-", given=document)
