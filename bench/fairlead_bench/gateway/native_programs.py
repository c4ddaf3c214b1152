"""Builds the bench's programs in C with the system's compiler, once per version of their sources.

They are the mock engine, the load generator and the memory load, which runs here as well.

The cache of built and installed programs: outside the tree, under names that hold a hash of what
made them.

The mock engine as a running program: its ports, the pace of its streams, its counters.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from fairlead.runtime.compiled_build import cache_folder

SOURCES = Path(__file__).with_name("native")
_MEGABYTES = 256
"""More than the last level of any cache."""
_MAX_SECONDS = 3_600
_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")


def cache_path() -> Path:
    return cache_folder(os.environ)


def content_digest(parts: Iterable[bytes]) -> str:
    """Returns a short digest of all ``parts``."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Holds an exclusive lock on ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class BuildError(Exception):
    """Raised when the programs cannot be built; the text says why."""


@dataclass(frozen=True, slots=True)
class NativePrograms:
    """The programs, ready to run."""

    engine: Path
    load: Path
    memory_load: Path


def build() -> NativePrograms:
    """Returns the programs of the present sources. Raises BuildError."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        raise BuildError("no C compiler: install one (Debian: gcc libc6-dev), or name it in CC")
    sources = sorted(SOURCES.glob("*.[ch]"))
    folder = cache_path() / "bench" / content_digest([compiler.encode(), *(source.read_bytes() for source in sources)])
    with exclusive_lock(folder):
        for name in ("engine", "load", "memory_load"):
            if not (folder / name).exists():
                _compile(compiler, SOURCES / f"{name}.c", folder / name)
    return NativePrograms(folder / "engine", folder / "load", folder / "memory_load")


def _compile(compiler: str, source: Path, program: Path) -> None:
    made = program.with_suffix(".new")
    done = subprocess.run(
        [compiler, *_FLAGS, "-o", str(made), str(source), "-lm"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"{source.name} does not compile:\n{done.stderr}")
    made.rename(program)


@contextlib.contextmanager
def memory_load(program: Path, *, prefix: Sequence[str] = ()) -> Iterator[None]:
    """Runs a noisy neighbour while the context is open: it keeps caches and memory busy.

    ``prefix`` is put before its command. Raises RuntimeError if the program does not start.
    """
    command = [*prefix, str(program), str(_MEGABYTES), str(_MAX_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("the memory load does not start")
            yield
        finally:
            process.kill()


class CountedEngines(Protocol):
    """Engines at these ports that count what they served, since their start."""

    @property
    def ports(self) -> tuple[int, ...]:
        """Each is one engine to a gateway."""

    def stats(self) -> dict[str, int]:
        """Counters of all of them together; ``open`` is the number of streams at this moment."""


class MockEngine:
    """A context manager. ``prefix`` is put before the command, for example ``taskset -c 0``."""

    def __init__(self, program: Path, *, ports: int, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, str(program), str(ports)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._ports = tuple(int(word) for word in self._read_line().split()[1:])

    @property
    def ports(self) -> tuple[int, ...]:
        return self._ports

    def set_pace(self, interval_seconds: float) -> None:
        self._query(f"interval {round(interval_seconds * 1e6)}")

    def stats(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self._query("stats"))
        return found

    def __enter__(self) -> "MockEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _query(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read_line()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the mock engine has died")
        return line.strip()


class EngineGroup:
    """Several engine processes that a gateway takes for one fleet."""

    def __init__(self, engines: Sequence[MockEngine]) -> None:
        self._engines = engines

    @property
    def ports(self) -> tuple[int, ...]:
        return tuple([port for engine in self._engines for port in engine.ports])

    def stats(self) -> dict[str, int]:
        """Counters of all of them together; ``open`` is the number of streams at this moment."""
        total: Counter[str] = Counter()
        for engine in self._engines:
            total.update(engine.stats())
        return dict(total)
