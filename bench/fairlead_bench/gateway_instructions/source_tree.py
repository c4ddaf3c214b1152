"""A state of the sources, copied into the cache and compiled there by its own
``scripts/compile.py``.

Both states are copied, the present one too: an edit during the run changes nothing, and paths of
both have the same length.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from fairlead.runtime.compiled_build import cache_folder

_COMPILERS = ("scripts/compile.py", "tools/compile.py")
_COPIED = (".py", ".pyx", ".pxd", ".toml", ".yaml", ".json")
_SKIPPED = ("tests/", "docs/", "bench/", "e2e/", "charts/", "crds/", "examples/")


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
    """Returns whether compiling or running the gateway may need this file."""
    return path.endswith(_COPIED) and not path.startswith(_SKIPPED)


def _empty_folder(name: str) -> Path:
    folder = cache_folder(os.environ) / "bench" / "instructions" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _git(repository: Path, *arguments: str) -> bytes:
    command: Sequence[str] = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout
