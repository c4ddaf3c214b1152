"""The command line: both states are exported, compiled and counted, one after the other, and
compared."""

import argparse
import hashlib
import hmac
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fairlead_bench.gateway_instructions import callgrind
from fairlead_bench.gateway_instructions.gateway_process import GatewayFailed, GatewayProcess
from fairlead_bench.gateway_instructions.result_rows import DECISION, rows, standard_errors
from fairlead_bench.gateway_instructions.scenarios import KEY, Script, instructions_per_unit, scenarios
from fairlead_bench.gateway_instructions.source_tree import SourceTree, export_commit, export_working_tree
from fairlead_bench.results import write_results

BASE = "7efb656"
"""The commit before the packages got their present layout."""
ROOT = Path(__file__).resolve().parents[3]
_PEPPER = "bench-pepper"
_PLAIN_BEFORE = 1_100
"""Plain requests before the first window. Of the first thousand answers a gateway learns more than
of later ones."""
_REST_SECONDS = 2.2
"""Seconds of rest at the end of a window. A worker does within two seconds what it defers, so a
window holds all that its requests caused. The instructions of a rest without requests are
subtracted."""
_RESTS = 3
_DECISIONS = 400
_DECISIONS_BEFORE = 1_200
"""Decisions before the first window: every conversation has started again by then."""
_PROGRAM = Path(__file__).with_name("routing_program.py")


@dataclass
class Counts:
    """Counts of one state of the sources: instructions per unit, window by window."""

    revision: str
    windows: dict[str, list[float]] = field(default_factory=dict)

    def add(self, units: Mapping[str, float]) -> None:
        """Adds one window."""
        for unit, instructions in units.items():
            self.windows.setdefault(unit, []).append(round(instructions))


def main(arguments: Sequence[str]) -> int:
    """Counts, writes, prints; 0 when every goal holds, 2 when counting was impossible."""
    options = _options(arguments)
    try:
        valgrind = callgrind.ensure_installed()
        base = export_commit(ROOT, options.base, "base")
        new = export_commit(ROOT, options.new, "head") if options.new else export_working_tree(ROOT, "head")
        base_counts, new_counts = _count(base, options), _count(new, options)
    except (callgrind.ValgrindMissing, GatewayFailed) as error:
        print(error, file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"{error}\n{_text(error.stderr)}", file=sys.stderr)
        return 2
    made = rows(new_counts.windows, base_counts.windows, base_counts.revision)
    errors = standard_errors(new_counts.windows, base_counts.windows)
    more = {"valgrind": valgrind, "base": asdict(base_counts), "new": asdict(new_counts), "standard_error": errors}
    write_results("gateway-instructions", made, seed=options.seed, file=options.out, more=more)
    print(f"largest standard error of a ratio: {max(errors.values()):.2%}; written: {options.out}")
    return 0 if all(row.holds for row in made) else 1


def _count(tree: SourceTree, options: argparse.Namespace) -> Counts:
    print(f"{tree.revision}: compiling, unless it is compiled already ...", file=sys.stderr)
    copy, simulator = tree.compile(), tree.compile(with_simulator=True)
    counts = Counts(tree.revision)
    with tempfile.TemporaryDirectory(prefix="fairlead-instructions-") as name:
        folder = Path(name) if options.keep is None else options.keep / tree.folder.name
        print(f"{tree.revision}: counting requests ...", file=sys.stderr)
        _count_requests(tree, copy, folder / "gateway", counts, options)
        print(f"{tree.revision}: counting routing decisions ...", file=sys.stderr)
        _count_decisions(tree, simulator, folder / "routing", counts, options)
    return counts


def _count_requests(tree: SourceTree, copy: Path, folder: Path, counts: Counts, options: argparse.Namespace) -> None:
    """Warms up every script, then counts them in turn, window after window."""
    folder.mkdir(parents=True)
    digest = hmac.new(_PEPPER.encode(), KEY.encode(), hashlib.sha256).hexdigest()
    keys = folder / "keys.yaml"
    keys.write_text(f'keys:\n  - {{name: bench, digest: "{digest}"}}\n', encoding="utf-8")
    environ = {"FAIRLEAD_KEY_PEPPER": _PEPPER, "FAIRLEAD_HASH_SECRET": "bench-secret"}
    script = Script(options.seed)
    with GatewayProcess(tree, folder, script.fleet(), ["--keys", str(keys)], environ) as gateway:
        gateway.require_compiled(copy)
        counter = callgrind.Counter(gateway.worker_pid, folder, keep_dumps=options.keep is not None)

        def count(run: Callable[[int], None], turns: int) -> int:
            def work() -> None:
                with gateway.slow_clock():
                    run(turns)
                time.sleep(_REST_SECONDS)

            script.plain(1)  # opens the connections that a rest has closed
            return counter.count(work)

        script.connect(gateway.port)
        script.learn_lengths()
        counter.start()
        with gateway.slow_clock():
            script.plain(_PLAIN_BEFORE)
        runs = scenarios(script)
        for scenario in runs.values():
            count(scenario.run, scenario.turns)
        rest = statistics.median(count(lambda _: None, 0) for _ in range(_RESTS))
        for _ in range(options.windows):
            found = {name: count(scenario.run, scenario.turns) - rest for name, scenario in runs.items()}
            counts.add(instructions_per_unit(found, {name: scenario.turns for name, scenario in runs.items()}))
        script.close()


def _count_decisions(tree: SourceTree, copy: Path, folder: Path, counts: Counts, options: argparse.Namespace) -> None:
    folder.mkdir(parents=True)
    environ = tree.environment(os.environ)
    environ["PYTHONPATH"] = f"{copy}{os.pathsep}{environ['PYTHONPATH']}"
    command = [*callgrind.command(folder), sys.executable, str(_PROGRAM)]
    with subprocess.Popen(
        command, env=environ, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None

        def say(line: str, expected: str) -> None:
            program.stdin.write(f"{line}\n")
            if (answer := program.stdout.readline().strip()) != expected:
                raise GatewayFailed(f"the routing program of {tree.revision} said {answer!r}, not {expected!r}")

        if program.stdout.readline().strip() != "ready":
            raise GatewayFailed(f"the routing program of {tree.revision} does not start")
        counter = callgrind.Counter(program.pid, folder, keep_dumps=options.keep is not None)
        say(str(_DECISIONS_BEFORE), "drawn")
        say("", "done")
        counter.start()
        say(str(_DECISIONS), "drawn")
        say("", "done")
        for _ in range(options.windows):
            say(str(_DECISIONS), "drawn")
            counts.add({DECISION: counter.count(lambda: say("", "done")) / _DECISIONS})
        program.stdin.close()


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fairlead_bench gateway-instructions",
        description="Instructions per request, chunk and routing decision of the compiled gateway, compared with an older commit.",
    )
    parser.add_argument("--base", default=BASE, metavar="REV", help=f"the commit to compare with ({BASE})")
    parser.add_argument("--new", metavar="REV", help="the commit to count; without it the working tree")
    parser.add_argument("--windows", type=int, default=5, help="how often each script is counted; means are compared")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs and callgrind's dumps there")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench" / "gateway-instructions.json")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
