"""Go programs of a cluster level, compiled into the cache once per set of pins: 430 processor
seconds for *api*, 820 for *full*.

A program appears under its name only when it is whole, so a folder with all names is complete. A
second caller waits for the first. Go checks every module against ``go.sum``. A Go that is older
than the modules want fetches the right one by itself.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.artifacts.pinned_versions import Program
from e2e.cluster.run_record import ClusterError, print_progress, progress_step
from scripts.release.images.layers import build_lock


class GoMissing(ClusterError):
    """Raised where something must be compiled and there is no Go, or one that is too old."""


def is_built(level: str) -> bool:
    return not _missing(pinned_versions.LEVELS[level])


def assets() -> Path:
    """The folder with etcd and kube-apiserver: what KUBEBUILDER_ASSETS names where it is complete,
    else ours, there or not."""
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given and all((Path(given) / program.name).exists() for program in pinned_versions.API[:2]):
        return Path(given)
    return pinned_versions.binaries()


def build(level: str) -> Path:
    """Builds what is missing and returns the folder of the Kubernetes programs. Idempotent, and
    safe in several processes."""
    if level == "api" and assets() != pinned_versions.binaries():
        return assets()
    compile_missing(pinned_versions.LEVELS[level])
    return pinned_versions.binaries()


def compile_missing(programs: Sequence[Program]) -> None:
    """Compile those that are not there."""
    if not _missing(programs):
        return
    with build_lock("cluster-build"):
        missing = _missing(programs)
        if missing:
            _check_go()
            names = ", ".join(program.name for program in missing)
            print_progress(f"compiling {names} (once per set of pins; ten minutes of two cores for all) ...")
        for module in dict.fromkeys(program.module for program in missing):
            with progress_step(f"modules of {module}"):
                packages = [program.package for program in missing if program.module == module]
                _go(
                    module, "list", "-deps", *pinned_versions.tags(module), *packages
                )  # fetches what these need and nothing else
        for program in missing:
            with progress_step(program.name):
                _compile(program)


def path_of(program: Program) -> Path:
    return pinned_versions.binaries(program.module) / program.name


def _missing(programs: Sequence[Program]) -> list[Program]:
    return [program for program in programs if not path_of(program).exists()]


def _compile(program: Program) -> None:
    target = path_of(program)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    flags = [
        *pinned_versions.tags(program.module),
        "-trimpath",
        "-ldflags",
        pinned_versions.linker_flags(program),
        "-o",
        str(partial),
    ]
    _go(program.module, "build", "-p", str(os.cpu_count() or 1), *flags, program.package)
    if program.brings is not None:
        _copy_sources(program.module, target.parent, *program.brings)
    partial.replace(target)


def _copy_sources(module: str, folder: Path, name: str, of: str, path: str) -> None:
    """Take a file or folder out of a module's sources, which may be gone later."""
    source = Path(_go(module, "list", "-m", "-f", "{{.Dir}}", of).strip()) / path
    shutil.rmtree(folder / name, ignore_errors=True)
    for found in (source, *sorted(source.rglob("*"))):  # copied without their modes: Go keeps sources read-only
        target = folder / name / found.relative_to(source)
        if found.is_dir():
            target.mkdir()
        else:
            target.write_bytes(found.read_bytes())


def _go(module: str, *arguments: str) -> str:
    return go(pinned_versions.HERE / module, *arguments)


def go(folder: Path, *arguments: str) -> str:
    """Runs Go and returns its output. Programs are static: they run in any image and on any user's
    machine."""
    environ = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-buildvcs=false"}
    done = subprocess.run(["go", *arguments], cwd=folder, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"go {' '.join(arguments[:2])} failed in {folder}:\n{done.stderr[-4_000:]}")
    return done.stdout


def _check_go() -> None:
    wanted = ".".join(map(str, pinned_versions.NEEDS_GO))
    if shutil.which("go") is None:
        why = f"Go {wanted} or newer is needed to build a real API server"
        raise GoMissing(f"{why}: install it, or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver")
    version = subprocess.run(["go", "env", "GOVERSION"], check=True, capture_output=True, text=True).stdout
    found = re.match(r"go(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < pinned_versions.NEEDS_GO:
        raise GoMissing(f"Go {wanted} or newer is needed; this is {version.strip()}")
