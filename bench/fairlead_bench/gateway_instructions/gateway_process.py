"""A gateway with one worker that runs under callgrind.

The gateway starts its worker with ``sys.executable``. Here that is a script that puts valgrind in
front. The supervisor and the process that parses its files run natively.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fairlead_bench.gateway_instructions import callgrind
from fairlead_bench.gateway_instructions.source_tree import SourceTree
from fairlead_testing.ports import unused_port

_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_SITE = 'import gc, os, sys\ngc.disable()\nsys.executable = os.environ["COUNTED_PYTHON"]\n'
_SLOW_CLOCK = Path(__file__).with_name("native") / "slow_clock.c"


class GatewayFailed(Exception):
    """Raised where the gateway does not serve, or not from compiled code."""


class GatewayProcess:
    """A gateway as a context manager. ``fleet`` is the text of the fleet file, ``environ`` holds
    settings."""

    def __init__(
        self, tree: SourceTree, folder: Path, fleet: str, options: list[str], environ: Mapping[str, str]
    ) -> None:
        self.port = unused_port()
        self._tree = tree
        self._folder = folder
        self._fleet = fleet
        self._options = options
        self._environ = environ
        self._clock_switch = folder / "clock-switch"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "GatewayProcess":
        folder = self._folder
        (folder / "site").mkdir(parents=True)
        (folder / "site" / "sitecustomize.py").write_text(_SITE, encoding="utf-8")
        (folder / "fleet.yaml").write_text(self._fleet, encoding="utf-8")
        _build(_SLOW_CLOCK, folder / "slow_clock.so")
        python = folder / "python"
        counted = [*callgrind.command(folder), sys.executable]
        python.write_text(
            f'#!/bin/sh\ncase "$*" in *.file_parsing.*) exec {sys.executable} "$@";; esac\n'
            f"echo $$ >{folder}/worker.pid\n"
            f'LD_PRELOAD={folder}/slow_clock.so exec {shlex.join(counted)} "$@"\n',
            encoding="utf-8",
        )
        python.chmod(0o755)
        environ = {**self._tree.environment(os.environ), **self._environ}
        self._clock_switch.write_bytes(b"\0")
        environ |= {"COUNTED_PYTHON": str(python), "SLOW_CLOCK": str(self._clock_switch)}
        environ["PYTHONPATH"] += f"{os.pathsep}{folder / 'site'}"
        command = [sys.executable, "-m", "fairlead_gateway", "--fleet", str(folder / "fleet.yaml")]
        command += ["--listen", f"127.0.0.1:{self.port}", "--manage", f"127.0.0.1:{unused_port()}", *self._options]
        with (folder / "gateway.log").open("wb") as log:
            self._process = subprocess.Popen(command, env=environ, cwd=folder, stdout=log, stderr=log)
        try:
            self._wait_until_ready(command[command.index("--manage") + 1])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def worker_pid(self) -> int:
        """The process that carries requests."""
        return int((self._folder / "worker.pid").read_text())

    @contextmanager
    def slow_clock(self) -> Iterator[None]:
        """Slows the worker's clocks down, as valgrind slows down the worker."""
        with self._clock_switch.open("r+b", buffering=0) as switch:
            switch.write(b"\1")
            try:
                yield
            finally:
                switch.seek(0)
                switch.write(b"\0")

    def require_compiled(self, copy: Path) -> None:
        """Checks that the worker has loaded the compiled modules. Raises GatewayFailed."""
        if f"{copy}/" not in Path(f"/proc/{self.worker_pid}/maps").read_text():
            raise GatewayFailed(f"the worker does not run from {copy}")

    def _wait_until_ready(self, manage: str) -> None:
        assert self._process is not None
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://{manage}/readyz", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        log = (self._folder / "gateway.log").read_text(encoding="utf-8", errors="replace")
        raise GatewayFailed(f"the gateway of {self._tree.revision} does not serve:\n{log[-2000:]}")


def _build(source: Path, library: Path) -> None:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
