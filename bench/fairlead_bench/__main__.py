"""``python -m fairlead_bench [--trace FILE] [NAME [arguments of the benchmark]]``; without a name,
one after the other.

``--list`` prints the names. ``NAME --help`` prints a benchmark's own arguments. Each benchmark
writes ``out/bench/NAME.json`` and prints the same as a table.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from fairlead_bench.registry import BENCHMARKS, PARTS, BenchmarkPart, Code

ROOT = Path(__file__).resolve().parents[2]
_NO_COMPILER = 3


def main(arguments: Sequence[str]) -> int:
    """Runs one benchmark, or all; 0 when all ended well, as each one judges itself."""
    options = _options(arguments)
    if options.list:
        for subject, parts in BENCHMARKS.items():
            for part in parts:
                print(f"{subject:21}{part.name:27}{part.minutes:>3} min  {part.summary()}")
        return 0
    if options.name is not None:
        return _run(PARTS[options.name], [*_trace_arguments(options), *options.arguments])
    names = [part.name for part in PARTS.values() if part.in_all]
    command = [sys.executable, "-m", "fairlead_bench", *(["--trace", str(options.trace)] if options.trace else [])]
    failed = [name for name in names if subprocess.run([*command, name], check=False).returncode]
    if failed:
        print(f"failed, or a goal was missed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(benchmark: BenchmarkPart, arguments: Sequence[str]) -> int:
    """Runs a benchmark in this process, which may restart from a compiled copy."""
    if benchmark.code is not Code.SOURCES and not any(word in ("-h", "--help") for word in arguments):
        _compile(benchmark.code)
        _restart_compiled(benchmark.code)
    status: int = import_module(benchmark.module).main(list(arguments))
    return status


def _compile(code: Code) -> None:
    """Makes the compiled copy, once for each state of the sources. Raises SystemExit where that
    fails."""
    option = ["--sim"] if code is Code.COMPILED_SIMULATOR else []
    command = [sys.executable, str(ROOT / "scripts" / "compile.py"), *option]
    status = subprocess.run(command, check=False).returncode
    if status not in (0, _NO_COMPILER):
        sys.exit(status)


def _restart_compiled(code: Code) -> None:
    """Restarts this program from the compiled copy. Returns where it runs from there already, or
    where none is wanted."""
    if code is Code.COMPILED_SIMULATOR:
        from fairlead_sim.compiled import run_compiled

        run_compiled()
    elif code is Code.COMPILED_WORKER:
        from fairlead.runtime.compiled_build import worker_environment

        environ = worker_environment(os.environ)
        if environ != os.environ:
            os.execve(sys.executable, [sys.executable, *sys.argv], environ)


def _trace_arguments(options: argparse.Namespace) -> list[str]:
    """Returns the trace as an argument of the benchmark; empty without one."""
    part = PARTS[options.name]
    if options.trace is None or part.trace_option is None or not options.trace.exists():
        return []
    return [part.trace_option, str(options.trace.parent if part.trace_option == "--traces" else options.trace)]


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fairlead_bench", description="Runs Fairlead's benchmarks.")
    parser.add_argument("--list", action="store_true", help="print the benchmarks with what they take")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a conversation trace for those that replay one")
    parser.add_argument("name", nargs="?", choices=PARTS, metavar="NAME", help="without it: all of them")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the benchmark")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
