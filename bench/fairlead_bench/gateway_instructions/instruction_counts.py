"""Programs under valgrind's callgrind, and the instructions that they execute between two moments.

A program starts without counting, which takes five times its time instead of fifty. Counting is
switched on when it is ready.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def instructions_of(dump: Iterable[str]) -> int:
    """Returns the instructions of a dump, from its lines. Raises ValueError for anything else."""
    for line in dump:
        if line.startswith(("summary: ", "totals: ")):
            return int(line.split()[1])
    raise ValueError("a callgrind dump without a summary")


_REST_SECONDS = 0.05
"""A program is at rest this long after its last answer: what it does behind the answer is counted
with it."""
_COMMAND_SECONDS = 60.0


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

    def count(self, work: Callable[[], object]) -> int:
        """Returns the instructions of the process during ``work``."""
        time.sleep(_REST_SECONDS)
        self._command("zero")
        work()
        time.sleep(_REST_SECONDS)
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


def command(folder: Path) -> list[str]:
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
