"""Builds the mock engine, the load generator and the memory load with the system's C compiler,
once per version of their sources."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fairlead_bench.gateway.build_cache import cache_path, content_digest, exclusive_lock

SOURCES = Path(__file__).with_name("native")
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
