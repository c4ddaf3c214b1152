"""One run of the release: where it reads and where it writes, and the error that ends it.

Progress messages with durations, one line a step, on standard error. Standard output is for
scripts.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fairlead import __version__

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("amd64", "arm64")
"""Architectures of the images."""


class ReleaseError(Exception):
    """Raised when a part of the release cannot be made; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ReleaseRun:
    """The inputs of every part of a release.

    root: the sources.

    folder: where files are written.

    architectures: of the images, as Debian names them.

    registry: prefix of the images' names, written into the chart; None leaves it to the values.
    """

    root: Path
    folder: Path
    version: str = __version__
    architectures: Sequence[str] = ARCHITECTURES
    registry: str | None = None

    def environment(self) -> dict[str, str]:
        """Returns the environment of a tool, without what changes the bytes that it writes."""
        return {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"} | {
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        }

    def run(self, *command: str) -> None:
        """Runs a tool in the sources. Raises ReleaseError with its last lines."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ReleaseError(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout)[-2000:]}")


Part = Callable[[ReleaseRun], Iterable[Path]]
"""Writes files into the folder and returns them. The same sources give the same bytes."""


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_step(what: str) -> Iterator[None]:
    """Prints what was done and how many seconds it took, also where it failed."""
    began, outcome = time.monotonic(), "failed after"
    try:
        yield
        outcome = ""
    finally:
        print_progress(f"  {what:<58} {outcome} {time.monotonic() - began:7.1f} s".rstrip())
