"""Compiles the data plane with mypyc and Cython, once per state of the sources.

    .venv/bin/python scripts/compile.py [--sim] [--into FOLDER]

Compiles the modules that ``fairlead.runtime.compiled_build`` lists, in a copy of the packages. The
copy lies in the cache, where gateways find it, or with ``--into`` elsewhere, for an image.
``--sim`` makes another copy, of the simulators, their router and the autoscaler's core.
``fairlead_sim.compiled`` has its list. A folder is named after all sources, this list among them,
so a changed list makes another copy.

The modules in Cython (``.pyx``) are compiled in the same step. Sources that are not compiled do the
same in Python.

It needs a C compiler and Python's headers. Without them it prints that and exits 3, and gateways
run interpreted. It takes three to five minutes of processor time, on all cores.
"""

import argparse
import ast
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fairlead.runtime import compiled_build
from fairlead_sim import compiled as compiled_sim

_SETUP = """
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from Cython.Build import cythonize
from mypyc.build import mypycify
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

class ParallelBuild(build_ext):
    def build_extensions(self):
        compile_file, link = self.compiler._compile, self.compiler.link_shared_object
        compiled = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self.compiler._compile = lambda *arguments: compiled.append(pool.submit(compile_file, *arguments))

            def link_compiled(*arguments, **options):
                while compiled:
                    compiled.pop().result()
                link(*arguments, **options)

            self.compiler.link_shared_object = link_compiled
            super().build_extensions()

modules, flags, cython_modules = sys.argv.pop(1).split(","), sys.argv.pop(1).split(), sys.argv.pop(1)
extensions = mypycify(["--config-file=mypy.ini", *modules], opt_level="3", debug_level="0", multi_file=True)
extensions += cythonize([Extension("*", [cython_modules], extra_compile_args=["-O3", "-g0"])])
for extension in extensions:
    extension.extra_compile_args += flags
setup(name="fairlead-compiled", packages=[], ext_modules=extensions, cmdclass={"build_ext": ParallelBuild})
"""
"""One file of C for each module, and as many compilers as there are processors. One file for all of
them takes one processor more than twice as long."""
_FLAGS = ("-Wno-error", "-fvisibility=hidden", "-fno-plt")
"""Flags of the C compiler. Warnings about generated code are ignored.

Calls among the modules and into Python go straight, not through stubs. With ``opt_level`` 3 that is
3 % of a request's instructions."""

_MYPY = """
[mypy]
namespace_packages = True
explicit_package_bases = True
ignore_missing_imports = True
follow_imports = silent
"""
NO_COMPILER = 3


def main() -> int:
    """Returns 0 when the copy exists afterwards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--into", type=Path, help="put the copy here instead of into the cache")
    parser.add_argument(
        "--sim", action="store_true", help="simulators and the autoscaler's core, for benchmarks and nightly runs"
    )
    parser.add_argument("--print", action="store_true", help="only say where the copy lies, if it is there")
    options = parser.parse_args()
    build = compiled_sim if options.sim else compiled_build
    folders, patterns = build.package_folders(), build.COMPILED_MODULES
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
    print("compiling (once per state of its sources, a few minutes) ...", file=sys.stderr)
    return _build(folders, target, patterns)


def compiled_modules(root: Path, patterns: Iterable[str]) -> list[str]:
    paths = dict.fromkeys(path for pattern in patterns for path in sorted(root.glob(pattern)))
    return [str(path.relative_to(root)) for path in paths if not _defines_struct(path)]


def _defines_struct(path: Path) -> bool:
    classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    return any(ast.unparse(base).endswith("Struct") for node in classes for base in node.bases)


def _build(folders: list[Path], target: Path, patterns: Iterable[str]) -> int:
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
            ",".join(compiled_modules(work, patterns)),
            " ".join(_known_flags(Path(name))),
            compiled_build.CYTHON_MODULES,
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
        for generated in work.glob(compiled_build.CYTHON_MODULES):
            generated.with_suffix(".c").unlink()
        (work / compiled_build.COMPLETE_MARKER).touch()
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    print(f"compiled: {target}", file=sys.stderr)
    return 0


def _known_flags(folder: Path) -> list[str]:
    """Returns the flags of ``_FLAGS`` that the compiler accepts."""
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
