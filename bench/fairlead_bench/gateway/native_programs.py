"""Builds the bench's programs in C with the system's compiler, once per version of their sources.

They are the mock engine, the load generator and the memory load, which runs here as well."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead_bench.gateway.build_cache import cache_path, content_digest, exclusive_lock

SOURCES = Path(__file__).with_name("native")
_MEGABYTES = 256
"""More than the last level of any cache."""
_MAX_SECONDS = 3_600
_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")


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
