"""A gateway whose worker is counted while scripts run against it, window after window.

A gateway with one worker that runs under callgrind.

The gateway starts its worker with ``sys.executable``. Here that is a script that puts valgrind in
front. The supervisor and the process that parses its files run natively.

A client with one connection that is kept. It reads exactly as far as the script wants.
"""

import argparse
import hashlib
import hmac
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fairlead_bench.gateway_instructions import instruction_counts
from fairlead_bench.gateway_instructions.scenarios import (
    KEY,
    Scenario,
    Script,
    cost_per_unit,
    cost_without_keys,
    scenarios,
    scenarios_without_keys,
)
from fairlead_bench.gateway_instructions.source_tree import SourceTree
from fairlead_testing.processes import unused_port

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
        counted = [*instruction_counts.command(folder), sys.executable]
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


_PEPPER = "bench-pepper"
KEY_DIGEST = hmac.new(_PEPPER.encode(), KEY.encode(), hashlib.sha256).hexdigest()
"""The digest of the clients' key."""
_PLAIN_BEFORE = 3_000
"""Plain requests before the first window. Of the first thousand answers a gateway learns more than
of later ones. Its decision log gets full, too (4,096 requests): from then on, each request drops
one, as in every gateway that has served for a while."""
_REST_SECONDS = 2.2
"""Seconds of rest at the end of a window. A worker does within two seconds what it defers, so a
window holds all that its requests caused. The cost of a rest without requests is subtracted."""
_RESTS = 3


PerUnit = Callable[[dict[str, float], dict[str, int]], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Callers:
    """The way in which a gateway knows its callers, and what is counted there.

    option, file: an option of the gateway and the text of its file; empty where it asks for no key.
    scenarios, cost_per_unit: the scripts, and the cost of each unit.
    is_priced: the models have a price.
    warm_up_seconds: before the first request.
    """

    option: str
    file: str
    scenarios: Callable[[Script], Mapping[str, Scenario]]
    cost_per_unit: PerUnit
    is_priced: bool = False
    warm_up_seconds: float = 0.0


WITH_KEYS = Callers("--keys", f'keys:\n  - {{name: bench, digest: "{KEY_DIGEST}"}}\n', scenarios, cost_per_unit)
WITHOUT_KEYS = Callers("", "", scenarios_without_keys, cost_without_keys)


class CountedGateway:
    """A gateway with the scripted engines. `folder` gets its logs."""

    def __init__(
        self, tree: SourceTree, copy: Path, folder: Path, *, callers: Callers, options: argparse.Namespace
    ) -> None:
        self._tree = tree
        self._copy = copy
        self._folder = folder
        self._callers = callers
        self._options = options

    def windows(self) -> Iterator[dict[str, float]]:
        """Warms up every script, then yields the cost of each unit, once for each window."""
        script, callers = Script(self._options.seed), self._callers
        runs = callers.scenarios(script)
        turns = {name: scenario.turns for name, scenario in runs.items()}
        self._folder.mkdir(parents=True)
        environ = {"FAIRLEAD_KEY_PEPPER": _PEPPER, "FAIRLEAD_HASH_SECRET": "bench-secret"}
        fleet = script.fleet(is_priced=callers.is_priced)
        with GatewayProcess(self._tree, self._folder, fleet, self._caller_options(), environ) as gateway:
            gateway.require_compiled(self._copy)
            keep_dumps = self._options.keep is not None
            counter = instruction_counts.InstructionCounter(gateway.worker_pid, self._folder, keep_dumps=keep_dumps)

            def count(run: Callable[[int], None], turns: int) -> float:
                def work() -> None:
                    with gateway.slow_clock():
                        run(turns)
                    time.sleep(_REST_SECONDS)

                script.open_connections()
                return counter.count(work)

            time.sleep(callers.warm_up_seconds)
            script.await_admission(gateway.port)
            script.connect(gateway.port)
            script.learn_lengths()
            counter.start()
            with gateway.slow_clock():
                script.plain(_PLAIN_BEFORE)
            for scenario in runs.values():
                count(scenario.run, scenario.turns)
            rest = median([count(lambda _: None, 0) for _ in range(_RESTS)])
            for _ in range(self._options.windows):
                costs = {name: count(scenario.run, scenario.turns) - rest for name, scenario in runs.items()}
                yield callers.cost_per_unit(costs, turns)
            script.close()

    def _caller_options(self) -> list[str]:
        if not self._callers.option:
            return []
        file = self._folder / "callers.yaml"
        file.write_text(self._callers.file, encoding="utf-8")
        return [self._callers.option, str(file)]
