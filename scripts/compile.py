"""Compiles the data plane with mypyc: ``.venv/bin/python scripts/compile.py [--sim] [--into FOLDER]``; once per state of the sources.

Makes a copy of the packages with the modules below compiled, in the cache, where gateways find it
(``fairlead.runtime.compiled_build``);
with ``--into`` elsewhere, for an image; with ``--sim`` another copy, of the fleet simulator and the router that it runs
(``fairlead_sim.compiled``). Needs a C compiler and Python's headers; without them it says so and exits 3, and gateways run
interpreted. Takes about a minute of one core.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from fairlead.runtime import compiled_build
from fairlead_sim import compiled as compiled_sim

ROOMS = (
    "listen",
    "reader",
    "head",
    "chunked",
    "reply",
    "halfclose",
    "deadline",
    "request_ids",
    "body",
    "usual",
    "model",
    "splice",
    "served_name",
    "handoff",
    "prompt",
    "route",
    "wire",
    "reach",
    "upstream",
    "sse",
    "events",
    "answer",
    "forward",
    "short",
    "overdue",
    "judge",
    "keys",
    "retry",
    "settle",
    "gateway",
    "berths",
    "job",
    "decision_log",
    "health",
    "patience",
    "quarantine",
    "breaker",
    "lateness",
)
ROUTING = (
    "__init__",
    "convertible",
    "gaps",
    "glimpses",
    "held",
    "holdings",
    "hotness",
    "index",
    "kinds",
    "ledger",
    "options",
    "pins",
    "prefix",
    "presets/__init__",
    "presets/answer",
    "presets/dual_hash",
    "presets/dualmap",
    "presets/preble",
    "presets/published",
    "presets/question",
    "presets/simple",
    "presets/table",
    "recent",
    "reported",
    "request",
    "ring",
    "router",
    "shared",
    "sources",
)
TELEMETRY = (
    "telemetry",
    "histogram",
    "series",
    "outcome",
)
INDEX = (
    "follow",
    "mirror",
    "events/decode",
    "events/sequence",
    "index/book",
    "index/mirror",
    "reader/line",
    "reader/link",
    "reader/replay",
    "reader/sockets",
    "reader/turns",
    "truth/adapters",
    "truth/blocks",
    "truth/identity",
    "truth/orphans",
    "truth/shared",
    "truth/slice",
    "truth/standing",
    "truth/truth",
)
MODULES = [
    *(f"fairlead_gateway/{room}.py" for room in ROOMS),
    *(f"fairlead_gateway/routing/{part}.py" for part in ROUTING),
    *(f"fairlead_gateway/telemetry/{part}.py" for part in TELEMETRY),
    *(f"fairlead_kvstore/{part}.py" for part in INDEX),
    "fairlead/decision.py",
    "fairlead/engine_profile.py",
]
"""What a request, and what an engine tells, passes through. Left out: modules with msgspec structs (mypyc cannot make them) and
what runs once in a while."""
SIMULATOR = [
    *(f"fairlead_gateway/routing/{part}.py" for part in ROUTING),
    "fairlead_gateway/routing/prefix/approximate_index.py",
    "fairlead/decision.py",
    "fairlead/engine_profile.py",
    *(
        f"fairlead_sim/{part}.py"
        for part in (
            "blocks",
            "course",
            "engine",
            "fleet",
            "holding",
            "outside",
            "seam_router",
            "seam_silence",
            "seam_view",
            "seam_words",
            "sequence",
            "served",
            "trace_prompts",
        )
    ),
    *(
        f"fairlead_sim/scaling/{part}.py"
        for part in ("book", "engine", "load", "loop", "oracle", "plant", "pool", "prefilling", "token_engine")
    ),
]
"""What a simulated request passes through."""

_SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup
modules, flags = sys.argv.pop(1).split(","), sys.argv.pop(1).split()
extensions = mypycify(["--config-file=mypy.ini", *modules], opt_level="3", debug_level="0")
for extension in extensions:
    extension.extra_compile_args += flags
setup(name="fairlead-compiled", packages=[], ext_modules=extensions)
"""
_FLAGS = ("-Wno-error", "-fvisibility=hidden", "-fno-plt")
"""What a compiler says of generated code is nobody's concern. Calls among the modules and into Python go straight, not through stubs:
with ``opt_level`` 3 that is 3 % of a request's instructions."""

_MYPY = """
[mypy]
namespace_packages = True
explicit_package_bases = True
ignore_missing_imports = True
follow_imports = silent
"""
NO_COMPILER = 3


def main() -> int:
    """0 when the copy is there afterwards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--into", type=Path, help="put the copy here instead of into the cache")
    parser.add_argument("--sim", action="store_true", help="the fleet simulator too, for benchmarks and nightly runs")
    parser.add_argument("--print", action="store_true", help="only say where the copy lies, if it is there")
    options = parser.parse_args()
    folders = compiled_sim.package_folders() if options.sim else compiled_build.package_folders()
    target = options.into or compiled_build.compiled_copy_path(folders, compiled_build.cache_folder(os.environ))
    if options.print:
        if (target / compiled_build.COMPLETE_MARKER).is_file():
            print(target)
        return 0
    if (target / compiled_build.COMPLETE_MARKER).is_file():
        return 0
    if shutil.which(os.environ.get("CC", "cc")) is None:
        print(
            "no C compiler is installed: gateways run interpreted, at about twice the processor time", file=sys.stderr
        )
        return NO_COMPILER
    print("compiling the data plane (once per state of its sources, about a minute) ...", file=sys.stderr)
    return _build(folders, target, SIMULATOR if options.sim else MODULES)


def _build(folders: list[Path], target: Path, modules: list[str]) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="compiling-") as name:
        work = Path(name) / "work"
        work.mkdir()
        for folder in folders:
            shutil.copytree(folder, work / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
        (work / "setup.py").write_text(_SETUP, encoding="utf-8")
        (work / "mypy.ini").write_text(_MYPY, encoding="utf-8")
        # Only the copy may be found under these names, or mypy sees every module twice.
        command = [
            sys.executable,
            "setup.py",
            ",".join(modules),
            " ".join(_known_flags(Path(name))),
            "build_ext",
            "--inplace",
        ]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("FAIRLEAD")}
        made = subprocess.run(command, cwd=work, env=environ, capture_output=True, text=True, check=False)
        if made.returncode:
            print(f"{made.stdout[-4000:]}{made.stderr[-4000:]}", file=sys.stderr)
            return made.returncode
        for leftover in ("build", ".mypy_cache", "setup.py", "mypy.ini"):
            path = work / leftover
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (work / compiled_build.COMPLETE_MARKER).touch()
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    print(f"compiled: {target}", file=sys.stderr)
    return 0


def _known_flags(folder: Path) -> list[str]:
    """Those of ``_FLAGS`` that the compiler takes without a word."""
    empty = folder / "empty.c"
    empty.write_text("int nothing(void) { return 0; }\n", encoding="utf-8")
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    known = []
    for flag in _FLAGS:
        command = [*compiler, "-Werror", flag, "-c", str(empty), "-o", str(folder / "empty.o")]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            known.append(flag)
    return known


if __name__ == "__main__":
    sys.exit(main())
