"""`fairlead up` as a process, for tests of local mode as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from fairlead.fleet.file import parse_fleet_file
from fairlead_testing.processes import PATIENCE_SECONDS, block_until, descendants, is_alive, is_listening

SMALL_MANIFEST = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {uri: "hf://org/tiny"}
  pools: [{acceleratorClassName: npu-910b4, minReplicas: 2}]
  slo: {ttft: 5s, tpot: 1s}
"""


class LocalStack:
    """A running `fairlead up` on free ports, with its files below `runtime`. The end of the block
    ends it.

    environment: variables in addition to those of this process.
    """

    def __init__(
        self,
        runtime: Path,
        *arguments: str,
        manifest: str | None = SMALL_MANIFEST,
        stdout: int = subprocess.PIPE,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        files: list[str] = []
        if manifest is not None:
            (runtime / "model.yaml").write_text(manifest)
            files = [str(runtime / "model.yaml")]
        self.runtime = runtime
        self.lines: list[str] = []
        self.url = self.manage = ""
        self._ready = threading.Event()
        own = {"XDG_RUNTIME_DIR": str(runtime), "PYTHONUNBUFFERED": "1"}
        self.environment = {**os.environ, **own, **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fairlead_cli", "up", *files, "--listen", ":0", "--manage", ":0", *arguments],
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def wait_ready(self, patience_seconds: float = PATIENCE_SECONDS) -> Self:
        """Waits for the `ready` line. Raises AssertionError with the output if the process ends
        first.
        """
        block_until(
            lambda: self._ready.is_set() or self.process.poll() is not None, "fairlead up is ready", patience_seconds
        )
        if not self._ready.is_set():
            self.__exit__(None, None, None)  # a caller that waits before its block would leave the pipe open
            raise AssertionError("fairlead up ended:\n" + "".join(self.lines))
        return self

    def wait_exit(self) -> int:
        """Waits for the end and returns the exit code."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        return code

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def state(self) -> dict[str, Any]:
        """Returns the state file that `chat` and `status` read."""
        (file,) = self.runtime.glob("fairlead/up-*/stack.json")
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def children(self) -> dict[int, str]:
        """Returns the command line of every descendant by pid."""
        found = {}
        for pid in descendants(self.process.pid):
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def pid_of(self, part: str) -> int:
        return min(pid for pid, line in self.children().items() if part in line)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fairlead_cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=self.environment)

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line)
            words = line.split()
            if line.startswith("ready") and len(words) >= 4:
                self.url, self.manage = words[1], words[3]
                self._ready.set()


class StackFootprint:
    """The processes, ports and directories of a stack, to check later that nothing is left."""

    def __init__(self, up: LocalStack) -> None:
        self.pids = {up.process.pid, *up.children()}
        ports = {int(url.rsplit(":", 1)[1]) for url in (up.url, up.manage)}
        file = Path(up.state()["fleet_file"])
        fleet = parse_fleet_file(file.read_text(), file=str(file))
        ports |= {int(one.url.rsplit(":", 1)[1]) for ones in fleet.instances.values() for one in ones}
        self.ports: Sequence[int] = sorted(ports)
        self.runtime = up.runtime

    def is_gone(self) -> bool:
        """Returns True if no process, port or directory is left."""
        return (
            not any(is_alive(pid) for pid in self.pids)
            and not any(map(is_listening, self.ports))
            and not self.directories()
        )

    def directories(self) -> list[Path]:
        return list(self.runtime.glob("fairlead/up-*"))

    def __iter__(self) -> Iterator[int]:
        return iter(self.pids)
