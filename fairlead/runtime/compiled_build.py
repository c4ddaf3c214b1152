"""Finds the compiled build of the data plane.

`scripts/compile.py` compiles hot modules with mypyc and Cython. It stores a copy of the packages
with the compiled modules in the cache, in a folder named after a digest of the sources. Gateway
workers and indexers run from the copy if its digest matches their own sources, else from the
sources. A compiled build is therefore never out of date, and edits take effect without a rebuild.
In an image, the compiled modules lie inside the packages themselves.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

COMPILED_PACKAGES = ("fairlead", "fairlead_gateway", "fairlead_kvstore")
COMPILED_MODULES = (
    "fairlead/decision.py",
    "fairlead/engine_profile.py",
    "fairlead/engines/credentials.py",
    "fairlead/request_shapes.py",
    "fairlead/routes/fallback_graph.py",
    "fairlead_gateway/admission/**/*.py",
    "fairlead_gateway/caller_key.py",
    "fairlead_gateway/continuation/*.py",
    "fairlead_gateway/dialects/dialect.py",
    "fairlead_gateway/dialects/event_grammar.py",
    "fairlead_gateway/disaggregation/worker/*.py",
    "fairlead_gateway/http/*.py",
    "fairlead_gateway/idempotency/answer_table.py",
    "fairlead_gateway/idempotency/worker/*.py",
    "fairlead_gateway/journal.py",
    "fairlead_gateway/kv_index/links.py",
    "fairlead_gateway/kv_index/translator.py",
    "fairlead_gateway/kv_index/worker.py",
    "fairlead_gateway/limits/worker/*.py",
    "fairlead_gateway/openai/*.py",
    "fairlead_gateway/peers/worker.py",
    "fairlead_gateway/proxy/*.py",
    "fairlead_gateway/request_context.py",
    "fairlead_gateway/resilience/**/*.py",
    "fairlead_gateway/router_registry.py",
    "fairlead_gateway/routes/**/*.py",
    "fairlead_gateway/routing/**/*.py",
    "fairlead_gateway/runtime.py",
    "fairlead_gateway/telemetry/counters.py",
    "fairlead_gateway/telemetry/decision_log.py",
    "fairlead_gateway/telemetry/recorder.py",
    "fairlead_gateway/tenants/worker/*.py",
    "fairlead_gateway/upstream/*.py",
    "fairlead_kvstore/blockstore/**/*.py",
    "fairlead_kvstore/events/*.py",
    "fairlead_kvstore/index/writer_state.py",
    "fairlead_kvstore/reader/*.py",
)
"""Patterns of the modules that requests and KV events pass through.

Modules that define msgspec structs are left out, since mypyc cannot compile them.

Why here: the digest of the sources holds the list, so a changed list makes another copy.
"""
CYTHON_MODULES = "fairlead_*/native/*.pyx"
"""Loops over bytes, which stay slow in compiled Python; every copy holds them."""
COMPLETE_MARKER = "complete"
SOURCE_SUFFIXES = (".py", ".pyx", ".pxd")


def cache_folder(environ: Mapping[str, str]) -> Path:
    given = environ.get("FAIRLEAD_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "fairlead"


def package_folders() -> list[Path]:
    specs = [find_spec(name) for name in COMPILED_PACKAGES]
    return [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin]


def sources_digest(folders: Iterable[Path]) -> str:
    """Returns a digest of the package sources and of the running interpreter."""
    digest = hashlib.sha256(sys.version.encode())
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in SOURCE_SUFFIXES):
            digest.update(f"\n{folder.name}/{path.relative_to(folder)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compiled_copy_path(folders: Iterable[Path], cache: Path) -> Path:
    return cache / f"compiled-{sources_digest(folders)}"


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment for a worker or an indexer, with the compiled copy first on the path.

    The environment is unchanged if there is no compiled copy or `FAIRLEAD_COMPILED` is `0`.
    """
    environment = dict(environ)
    if environ.get("FAIRLEAD_COMPILED") == "0":
        return environment
    try:
        copy = compiled_copy_path(package_folders(), cache_folder(environ))
        if not (copy / COMPLETE_MARKER).is_file():
            return environment
    except (OSError, RuntimeError):  # no such folder, or no home: there is no copy
        return environment
    environment["PYTHONSAFEPATH"] = "1"  # else sources in the working folder would come first
    python_path = environ.get("PYTHONPATH")
    if python_path is not None and python_path.split(os.pathsep)[0] == str(copy):
        return dict(environ)  # this process already runs from the copy
    environment["PYTHONPATH"] = f"{copy}{os.pathsep}{python_path}" if python_path else str(copy)
    return environment


def is_compiled(file: str) -> bool:
    """Returns True if `file` is a compiled extension module."""
    return file.endswith(tuple(EXTENSION_SUFFIXES))
