"""The data plane compiled to machine code, where somebody has done so: the same sources, half the time on a processor.

``scripts/compile.py`` runs mypyc over the modules that requests and engines' events pass through and leaves a copy of the packages
with their compiled modules in the cache, under a name made of the sources' very bytes. A gateway's workers, and an indexer, run from
that copy when there is one for exactly the sources that run here; else from the sources themselves. So a compiled copy is never out
of date, and an edit needs no rebuild to be seen. In an image the compiled modules lie in the packages themselves, and nothing is
looked for.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

COMPILED_PACKAGES = ("fairlead", "fairlead_gateway", "fairlead_kvstore")
COMPLETE_MARKER = "complete"


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where built things are kept between runs: ``FAIRLEAD_CACHE``."""
    given = environ.get("FAIRLEAD_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "fairlead"


def package_folders() -> list[Path]:
    """Where the packages that may be compiled lie."""
    found = [find_spec(name) for name in COMPILED_PACKAGES]
    return [Path(spec.origin).parent for spec in found if spec is not None and spec.origin]


def sources_digest(folders: Iterable[Path]) -> str:
    """Names the very sources of the packages and the interpreter that runs them."""
    digest = hashlib.sha256(sys.version.encode())
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"\n{folder.name}/{path.relative_to(folder)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compiled_copy_path(folders: Iterable[Path], cache: Path) -> Path:
    """The folder that holds, or would hold, the compiled copy of these sources."""
    return cache / f"compiled-{sources_digest(folders)}"


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker or an indexer: the compiled copy in front of everything else, if there is one and it is wanted."""
    environment = dict(environ)
    if environ.get("FAIRLEAD_COMPILED") == "0":
        return environment
    try:
        copy = compiled_copy_path(package_folders(), cache_folder(environ))
        if not (copy / COMPLETE_MARKER).is_file():
            return environment
    except (OSError, RuntimeError):  # no such folder, or no home: then there is no copy either
        return environment
    environment["PYTHONSAFEPATH"] = (
        "1"  # the folder that a worker is started in may hold the sources, and would come first
    )
    before = environ.get("PYTHONPATH")
    if before is not None and before.split(os.pathsep)[0] == str(copy):
        return dict(environ)  # it runs from there already
    environment["PYTHONPATH"] = f"{copy}{os.pathsep}{before}" if before else str(copy)
    return environment


def is_compiled(file: str) -> bool:
    """Whether a module that lies in ``file`` is machine code."""
    return file.endswith(tuple(EXTENSION_SUFFIXES))
