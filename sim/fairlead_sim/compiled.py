"""The compiled copy of simulators, router and autoscaler, made by ``scripts/compile.py --sim``.

Why: benchmarks and nightly runs simulate tens of millions of requests. Compiled, a processor core
simulates three times as many per minute. The autoscaler plans 17,000 ticks in a simulated day.
With its core compiled such a day takes 21 s instead of 48 s, and the plans are the same.

The copy's folder is named by a hash of the sources (``fairlead.runtime.compiled_build``), so that
it is never stale. Without a copy everything runs from the sources.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import fairlead_autoscaler
import fairlead_sim
from fairlead.runtime import compiled_build
from fairlead_sim.engine import scheduler

COMPILED_MODULES = (
    "fairlead/decision.py",
    "fairlead/engine_profile.py",
    "fairlead_autoscaler/core/**/*.py",
    "fairlead_gateway/routing/**/*.py",
    *(f"fairlead_sim/adapters/{name}.py" for name in ("external_router", "field_parsing", "router_adapter")),
    *(f"fairlead_sim/autoscaling/{name}.py" for name in ("closed_loop", "offline_optimum", "routing")),
    *(f"fairlead_sim/autoscaling/{name}.py" for name in ("plant", "plant_engine", "pool", "request_table", "traffic")),
    "fairlead_sim/autoscaling/fleet_plant/*.py",
    *(f"fairlead_sim/engine/{name}.py" for name in ("block_pool", "scheduler", "sequence")),
    "fairlead_sim/fleet/*.py",
    *(f"fairlead_sim/gateways/{name}.py" for name in ("late_binding", "single_gateway")),
    "fairlead_sim/workload/trace_prompts.py",
)
"""Patterns of the modules that a simulated request passes through, or that make a plan."""


def package_folders() -> list[Path]:
    places = [*fairlead_sim.__path__, *fairlead_autoscaler.__path__]
    return [*compiled_build.package_folders(), *map(Path, places)]


def simulator_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a simulating process, with the compiled copy first on its path.

    The environment is unchanged if there is no copy, or if ``FAIRLEAD_COMPILED`` is 0.
    """
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
    """Restarts this program from the compiled copy; returns if there is none or it runs already."""
    environ = simulator_environment(os.environ)
    if environ != os.environ and not compiled_build.is_compiled(scheduler.__file__):
        os.execve(sys.executable, [sys.executable, *sys.argv], environ)
