"""A gateway whose worker is counted while scripts run against it, window after window.

A state of the sources, copied into the cache and compiled there by its own
``scripts/compile.py``.

Both states are copied, the present one too: an edit during the run changes nothing, and paths of
both have the same length.

Programs under valgrind's callgrind, and the instructions that they execute between two moments.

A program starts without counting, which takes five times its time instead of fifty. Counting is
switched on when it is ready.

The gateway starts its worker with ``sys.executable``. Here that is a script that puts valgrind in
front. The supervisor and the process that parses its files run natively.
"""

import argparse
import hashlib
import hmac
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median

from fairlead.runtime.compiled_build import cache_folder
from fairlead_bench.gateway_instructions.scenarios import (
    KEY,
    Scenario,
    Script,
    cost_per_unit,
    cost_without_keys,
    scenarios,
    scenarios_without_keys,
)
from fairlead_testing.processes import unused_port

_COMPILERS = ("scripts/compile.py", "tools/compile.py")
_COPIED = (".py", ".pyx", ".pxd", ".toml", ".yaml", ".json")
_SKIPPED = ("tests/", "docs/", "bench/", "e2e/", "charts/", "crds/", "examples/")

_COUNTER_REST_SECONDS = 0.05
"""A program is at rest this long after its last answer: what it does behind the answer is counted
with it."""
_COMMAND_SECONDS = 60.0

_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_SITE = 'import gc, os, sys\ngc.disable()\nsys.executable = os.environ["COUNTED_PYTHON"]\n'
_SLOW_CLOCK = Path(__file__).with_name("native") / "slow_clock.c"

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


class SourceTree:
    """A folder with one state of all packages. ``revision`` is a commit's short name, or ``working
    tree``."""

    def __init__(self, folder: Path, revision: str) -> None:
        self.folder = folder
        self.revision = revision

    @property
    def package_roots(self) -> list[Path]:
        """The folders from which its packages are imported."""
        project = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))
        packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        return list(dict.fromkeys((self.folder / package).parent for package in packages))

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """Returns the environment of a program that imports these sources.

        The caller's settings are not part of it.
        """
        kept = {name: value for name, value in given.items() if not name.startswith(("FAIRLEAD_", "PYTHON"))}
        kept |= {"PYTHONPATH": os.pathsep.join(map(str, self.package_roots)), "PYTHONSAFEPATH": "1"}
        if "FAIRLEAD_CACHE" in given:
            kept["FAIRLEAD_CACHE"] = given["FAIRLEAD_CACHE"]
        return kept | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}

    def compile(self, *, with_simulator: bool = False) -> Path:
        """Returns the folder of the compiled copy, and compiles it if needed.

        Raises subprocess.CalledProcessError.
        """
        script = next(self.folder / name for name in _COMPILERS if (self.folder / name).is_file())
        command = [sys.executable, str(script), *(["--sim"] if with_simulator else [])]
        environ = self.environment(os.environ)
        subprocess.run(command, env=environ, cwd=self.folder, check=True)
        printed = subprocess.run(
            [*command, "--print"], env=environ, cwd=self.folder, check=True, capture_output=True, text=True
        )
        return Path(printed.stdout.strip())


def export_commit(repository: Path, revision: str, name: str) -> SourceTree:
    """Exports a commit's sources into the cache folder ``name``.

    Raises subprocess.CalledProcessError for an unknown one.
    """
    commit = _git(repository, "rev-parse", "--short=12", f"{revision}^{{commit}}").decode().strip()
    folder = _empty_folder(name)
    archive = _git(repository, "archive", "--format=tar", commit)
    with tarfile.open(fileobj=BytesIO(archive)) as members:
        members.extractall(
            folder, members=[member for member in members if is_source(member.name) and member.isfile()], filter="data"
        )
    return SourceTree(folder, commit)


def export_sources(repository: Path, revision: str | None, name: str) -> SourceTree:
    """Exports a commit's sources, or those of the checkout without one. Raises as `export_commit`
    does.
    """
    return export_commit(repository, revision, name) if revision else export_working_tree(repository, name)


def export_working_tree(repository: Path, name: str) -> SourceTree:
    """Copies the sources of the checkout into the cache folder ``name``."""
    listed = _git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().split("\0")
    folder = _empty_folder(name)
    for path in sorted(set(filter(is_source, listed))):
        if (repository / path).is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / path, folder / path)
    return SourceTree(folder, "working tree")


def is_source(path: str) -> bool:
    return path.endswith(_COPIED) and not path.startswith(_SKIPPED)


def _empty_folder(name: str) -> Path:
    folder = cache_folder(os.environ) / "bench" / "instructions" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _git(repository: Path, *arguments: str) -> bytes:
    command: Sequence[str] = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


def instructions_of(dump: Iterable[str]) -> int:
    """Returns the instructions of a dump, from its lines. Raises ValueError for anything else."""
    for line in dump:
        if line.startswith(("summary: ", "totals: ")):
            return int(line.split()[1])
    raise ValueError("a callgrind dump without a summary")


class ValgrindMissing(Exception):
    """Raised where valgrind is missing and cannot be installed; the text says what to do."""


class InstructionCounter:
    """The counter of one process. ``folder`` holds its dumps."""

    def __init__(self, pid: int, folder: Path, *, keep_dumps: bool = False) -> None:
        self._pid = pid
        self._folder = folder
        self._keep_dumps = keep_dumps
        self._dumps = 0

    def start(self) -> None:
        self._command("instrumentation on")

    def count(self, work: Callable[[], object]) -> int:
        """Returns the instructions of the process during ``work``."""
        time.sleep(_COUNTER_REST_SECONDS)
        self._command("zero")
        work()
        time.sleep(_COUNTER_REST_SECONDS)
        self._command("dump")
        self._dumps += 1
        dump = self._folder / f"callgrind.out.{self._pid}.{self._dumps}"
        with dump.open(encoding="utf-8", errors="replace") as lines:
            instructions = instructions_of(lines)
        if not self._keep_dumps:
            dump.unlink()
        return instructions

    def _command(self, command: str) -> None:
        subprocess.run(
            ["vgdb", f"--pid={self._pid}", f"--vgdb-prefix={self._folder / 'vgdb'}", *command.split()],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_COMMAND_SECONDS,
        )


def valgrind_command(folder: Path) -> list[str]:
    """Returns the words that precede the command of a counted program."""
    return [
        "valgrind",
        "-q",
        "--tool=callgrind",
        "--instr-atstart=no",
        f"--vgdb-prefix={folder / 'vgdb'}",
        f"--callgrind-out-file={folder / 'callgrind.out.%p'}",
        f"--log-file={folder / 'valgrind.log'}",
    ]


def ensure_valgrind() -> str:
    """Returns the version of valgrind, and installs it if possible. Raises ValgrindMissing."""
    if shutil.which("valgrind") is None:
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            raise ValgrindMissing("valgrind is not installed; on Debian: apt-get install valgrind")
        print("installing valgrind ...", file=sys.stderr)
        for step in (["update"], ["install", "-y", "--no-install-recommends", "valgrind"]):
            if subprocess.run(["apt-get", "-qq", *step], stdout=subprocess.DEVNULL, check=False).returncode:
                raise ValgrindMissing(f"apt-get {' '.join(step)} failed; install valgrind and try again")
    return subprocess.run(["valgrind", "--version"], check=True, capture_output=True, text=True).stdout.strip()


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
        counted = [*valgrind_command(folder), sys.executable]
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


@dataclass(frozen=True, slots=True)
class Callers:
    """The way in which a gateway knows its callers, and what is counted there.

    option, file: an option of the gateway and the text of its file; empty where it asks for no key.
    scenarios, cost_per_unit: the scripts, and the cost of each unit.
    is_priced: the models have a price.
    resume: whether streams may go on at another engine; empty for the default.
    knows_ids: engines send the token ids that they are asked for.
    warm_up_seconds: before the first request.
    """

    option: str
    file: str
    scenarios: Callable[[Script], Mapping[str, Scenario]]
    cost_per_unit: PerUnit
    is_priced: bool = False
    resume: str = ""
    knows_ids: bool = True
    warm_up_seconds: float = 0.0


def keyed_callers(
    scenarios: Callable[[Script], Mapping[str, Scenario]],
    cost_per_unit: PerUnit,
    *,
    resume: str = "",
    knows_ids: bool = True,
) -> Callers:
    keys = f'keys:\n  - {{name: bench, digest: "{KEY_DIGEST}"}}\n'
    return Callers("--keys", keys, scenarios, cost_per_unit, resume=resume, knows_ids=knows_ids)


WITH_KEYS = keyed_callers(scenarios, cost_per_unit)
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
        callers = self._callers
        script = Script(self._options.seed, knows_ids=callers.knows_ids)
        runs = callers.scenarios(script)
        turns = {name: scenario.turns for name, scenario in runs.items()}
        self._folder.mkdir(parents=True)
        environ = {"FAIRLEAD_KEY_PEPPER": _PEPPER, "FAIRLEAD_HASH_SECRET": "bench-secret"}
        fleet = script.fleet(is_priced=callers.is_priced, resume=callers.resume)
        with GatewayProcess(self._tree, self._folder, fleet, self._caller_options(), environ) as gateway:
            gateway.require_compiled(self._copy)
            keep_dumps = self._options.keep is not None
            counter = InstructionCounter(gateway.worker_pid, self._folder, keep_dumps=keep_dumps)

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
