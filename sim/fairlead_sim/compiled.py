"""The fleet simulator compiled to machine code, with the router that it runs, where ``scripts/compile.py --sim`` has done so.

Benchmarks and nightly runs simulate tens of millions of requests; compiled, one core does three times as many a minute. The copy
is found as a gateway's worker finds its own (``fairlead.runtime.compiled_build``): under a name made of the sources'
very bytes, so it
is never out of date, and without it everything runs from the sources.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import fairlead_sim
from fairlead.runtime import compiled_build
from fairlead_sim.engine import scheduler


def package_folders() -> list[Path]:
    """Where the packages that may be compiled lie, the simulator's among them."""
    return [*compiled_build.package_folders(), *[Path(place) for place in fairlead_sim.__path__]]


def simulator_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that simulates: with the compiled copy in front, if there is one and it is wanted."""
    environment = dict(environ)
    if environ.get("FAIRLEAD_COMPILED") == "0":
        return environment
    copy = compiled_build.compiled_copy_path(package_folders(), compiled_build.cache_folder(environ))
    if not (copy / compiled_build.COMPLETE_MARKER).is_file():
        return environment
    environment["PYTHONSAFEPATH"] = "1"
    previous_path = environ.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{copy}{os.pathsep}{previous_path}" if previous_path else str(copy)
    return environment


def run_compiled() -> None:
    """Start this very program anew from the compiled copy, if there is one; returns where there is none or it is the copy already."""
    environ = simulator_environment(os.environ)
    if environ != os.environ and not compiled_build.is_compiled(scheduler.__file__):
        os.execve(sys.executable, [sys.executable, *sys.argv], environ)
