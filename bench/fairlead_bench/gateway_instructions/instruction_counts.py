"""Programs under valgrind's callgrind, and what they execute between two moments: instructions,
branches, and misses of simulated caches.

A program starts without counting, which takes five times its time instead of fifty. Counting is
switched on when it is ready.

Costs of a callgrind dump: events by metric, and instructions by part of the request path.

mypyc names the C function of a Python function `CPyDef_<end of its module>___<name>`. An
instruction belongs to the part of the nearest such function among its callers: a dict lookup to the
module that looks up.

Counts of both states as rows with goals.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

METRICS: Mapping[str, tuple[str, ...]] = {
    "instructions": ("Ir",),
    "branches": ("Bc", "Bi"),
    "mispredicted branches": ("Bcm", "Bim"),
    "first-level cache misses": ("I1mr", "D1mr", "D1mw"),
    "last-level cache misses": ("ILmr", "DLmr", "DLmw"),
}
"""Metric → the events of callgrind that it adds."""
EVENT_LOOP = "event loop"
"""The part of instructions without a compiled function among their callers."""
OTHER = "request life cycle"
PARTS: Mapping[str, tuple[str, ...]] = {
    "prefix": ("fairlead_gateway.routing.prefix.",),
    "parse": (
        "fairlead_gateway.http.request_",
        "fairlead_gateway.worker.openai.",
        "fairlead_gateway.worker.api_keys",
    ),
    "ledger": ("fairlead_gateway.routing.load.",),
    "route": (
        "fairlead_gateway.routing.",
        "fairlead_gateway.worker.dispatch.router_registry",
        "fairlead_gateway.worker.disaggregation.",
        "fairlead.decision",
        "fairlead.engine_profile",
    ),
    "admission": ("fairlead_gateway.admission.", "fairlead_gateway.worker.dispatch."),
    "encode": ("fairlead_gateway.worker.upstream.request_encoder", "fairlead_gateway.http.listener"),
    "relay": ("fairlead_gateway.worker.upstream.", "fairlead_gateway.worker.proxy.relay"),
    "settle": ("fairlead_gateway.worker.resilience.", "fairlead_gateway.worker.proxy.request_recorder"),
    "telemetry": ("fairlead_gateway.telemetry.", "fairlead_gateway.worker.reporting.", "fairlead.request_shapes"),
    "client connection": ("fairlead_gateway.http.",),
}
"""Part → beginnings of its modules' names. The first match counts."""
_COMPILED = "CPyDef_"
_NAMED = re.compile(r"c?fn=(\(\d+\))(?: (.*))?")
_COST_START = frozenset("0123456789+-*")

Cost = dict[str, float]
"""Events by metric, and instructions by compiled function."""


def cost_of(dump: Iterable[str]) -> Cost:
    """Returns the cost that the lines of a dump hold. Raises ValueError for anything else."""
    events: list[str] = []
    totals: list[int] = []
    names: dict[str, str] = {}
    by_function: Counter[str] = Counter()
    function, is_call = EVENT_LOOP, False
    for line in dump:
        if line[0] in _COST_START:
            if not is_call:  # else the cost of the callee
                fields = line.split(maxsplit=2)
                by_function[function] += int(fields[1]) if len(fields) > 1 else 0
            is_call = False
        elif line.startswith(("fn=", "cfn=")):
            found = _NAMED.match(line)
            if found is not None:
                if found[2] is not None:
                    names[found[1]] = compiled_function(found[2].rstrip())
                if line[0] == "f":
                    function = names.get(found[1], EVENT_LOOP)
        elif line.startswith("calls="):
            is_call = True
        elif line.startswith("events: "):
            events = line.split()[1:]
        elif line.startswith(("summary: ", "totals: ")):
            totals = [int(word) for word in line.split()[1:]]
    if not events or not totals:
        raise ValueError("a callgrind dump without a summary")
    by_event = dict(zip(events, totals, strict=False))
    cost: Cost = {metric: sum(by_event.get(name, 0) for name in METRICS[metric]) for metric in METRICS}
    return cost | by_function


def compiled_function(chain: str) -> str:
    """Returns the first compiled function of a chain of callers; `EVENT_LOOP` without one."""
    return next((name for name in chain.split("'") if name.startswith(_COMPILED)), EVENT_LOOP)


def compiled_module_names(copy: Path) -> list[str]:
    """Returns the names of the modules that a compiled copy holds as extensions."""
    paths = (path.relative_to(copy) for path in copy.rglob("*.so"))
    return [".".join(path.parts)[: -len("".join(path.suffixes))] for path in paths if "__mypyc" not in path.name]


class PartTable:
    """The part of each compiled function, for the modules of one compiled copy."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = list(modules)
        self._known: dict[str, str] = {EVENT_LOOP: EVENT_LOOP}

    def by_part(self, cost: Cost) -> Cost:
        """Returns a cost with its functions added up by part."""
        added: defaultdict[str, float] = defaultdict(float)
        for name, value in cost.items():
            added[name if name in METRICS else self.part_of(name)] += value
        return dict(added)

    def part_of(self, function: str) -> str:
        """Returns the part of a compiled function."""
        part = self._known.get(function)
        if part is None:
            module = self._module_of(function.removeprefix(_COMPILED))
            part = self._known[function] = part_of_module(module)
        return part

    def _module_of(self, name: str) -> str:
        """Returns the module of `end_of_module___function`; mypyc takes the shortest unique end."""
        words = name.split("___")
        for count in range(1, len(words)):
            end = ".".join(words[:count])
            found = [module for module in self._modules if module == end or module.endswith(f".{end}")]
            if len(found) == 1:
                return found[0]
        return ""


def part_of_module(module: str) -> str:
    """Returns the part that a module belongs to."""
    return next((part for part, starts in PARTS.items() if module.startswith(starts)), OTHER)


_REST_SECONDS = 0.05
"""A program is at rest this long after its last answer: what it does behind the answer is counted
with it."""
_COMMAND_SECONDS = 60.0
_SIMULATED = ("--cache-sim=yes", "--branch-sim=yes", "--I1=32768,8,64", "--D1=32768,8,64", "--LL=1048576,16,64")
"""Caches of a fixed size, so that machines agree. The last level is what neighbours on a crowded
machine leave to one core."""
_CALLERS = ("--separate-callers=14", "--separate-recs=1")
"""Costs are kept by chain of callers: so each belongs to the nearest compiled function."""


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
        """Begins to count."""
        self._command("instrumentation on")

    def count(self, work: Callable[[], object]) -> Cost:
        """Returns what the process executes during ``work``."""
        time.sleep(_REST_SECONDS)
        self._command("zero")
        work()
        time.sleep(_REST_SECONDS)
        self._command("dump")
        self._dumps += 1
        dump = self._folder / f"callgrind.out.{self._pid}.{self._dumps}"
        with dump.open(encoding="utf-8", errors="replace") as lines:
            cost = cost_of(lines)
        if not self._keep_dumps:
            dump.unlink()
        return cost

    def _command(self, command: str) -> None:
        subprocess.run(
            ["vgdb", f"--pid={self._pid}", f"--vgdb-prefix={self._folder / 'vgdb'}", *command.split()],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_COMMAND_SECONDS,
        )


def command(folder: Path) -> list[str]:
    """Returns the words that precede the command of a counted program."""
    return [
        "valgrind",
        "-q",
        "--tool=callgrind",
        "--instr-atstart=no",
        *_SIMULATED,
        *_CALLERS,
        f"--vgdb-prefix={folder / 'vgdb'}",
        f"--callgrind-out-file={folder / 'callgrind.out.%p'}",
        f"--log-file={folder / 'valgrind.log'}",
    ]


def ensure_installed() -> str:
    """Returns the version of valgrind, and installs it if possible. Raises ValgrindMissing."""
    if shutil.which("valgrind") is None:
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            raise ValgrindMissing("valgrind is not installed; on Debian: apt-get install valgrind")
        print("installing valgrind ...", file=sys.stderr)
        for step in (["update"], ["install", "-y", "--no-install-recommends", "valgrind"]):
            if subprocess.run(["apt-get", "-qq", *step], stdout=subprocess.DEVNULL, check=False).returncode:
                raise ValgrindMissing(f"apt-get {' '.join(step)} failed; install valgrind and try again")
    return subprocess.run(["valgrind", "--version"], check=True, capture_output=True, text=True).stdout.strip()
