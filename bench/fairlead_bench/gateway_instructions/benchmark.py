"""Instructions per request, chunk and routing decision, compared with an older commit.

Both states are exported, compiled and counted, one after the other, and compared."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fairlead_bench.gateway_instructions.counted_gateway import (
    WITH_KEYS,
    WITHOUT_KEYS,
    CountedGateway,
    GatewayFailed,
    InstructionCounter,
    SourceTree,
    ValgrindMissing,
    ensure_valgrind,
    export_commit,
    export_sources,
    valgrind_command,
)
from fairlead_bench.gateway_instructions.scenarios import MESSAGES, PLAIN, RESPONSES, WAITING
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results

BASE = "7ff6b5ed"
"""The commit before the data plane was cut for crowded machines."""
ROOT = Path(__file__).resolve().parents[3]
_DECISIONS = 400
_DECISIONS_BEFORE = 1_200
"""Decisions before the first window: every conversation has started again by then."""
_PROGRAM = Path(__file__).with_name("routing_program.py")


DECISION = "routing decision"
Windows = dict[str, list[float]]
"""Unit → instructions of one such unit, in each window."""


def rows(new: Windows, base: Windows, revision: str) -> list[ResultRow]:
    """Returns a row per unit: means of the windows, and the new one ÷ the base."""
    wanted = load_goals("gateway-instructions")
    found = []
    for unit, counts in new.items():
        name, before = f"instructions per {unit}", base.get(unit)
        versus = None if before is None else statistics.fmean(before)
        found.append(wanted.ratio(name, "", statistics.fmean(counts), revision, versus))
    if PLAIN in new and WAITING in new:
        name = f"instructions of a {WAITING} ÷ {PLAIN}"
        ratio = statistics.fmean(new[WAITING]) / statistics.fmean(new[PLAIN])
        found.append(wanted.value(name, "", ratio))
        for dialect in (MESSAGES, RESPONSES):
            if (unit := f"plain request in {dialect}") in new:
                ratio = statistics.fmean(new[unit]) / statistics.fmean(new[PLAIN])
                found.append(wanted.value(f"instructions of a plain request in {dialect} ÷ {PLAIN}", "", ratio))
    return found


def standard_errors(new: Windows, base: Windows) -> dict[str, float]:
    """Returns unit → standard error of new ÷ base, from the quotients window by window.

    Why: equal windows do equal work, so quotients vary less than counts.
    """
    found = {}
    for unit, counts in new.items():
        quotients = [one / other for one, other in zip(counts, base.get(unit, ()), strict=False)]
        found[unit] = statistics.stdev(quotients) / len(quotients) ** 0.5 if len(quotients) > 1 else 0.0
    return found


def main(arguments: Sequence[str]) -> int:
    """Counts, writes, prints; 0 when every goal holds, 2 when counting was impossible."""
    options = _options(arguments)
    try:
        valgrind = ensure_valgrind()
        base = export_commit(ROOT, options.base, "base")
        new = export_sources(ROOT, options.new, "head")
        base_counts, new_counts = _count(base, options), _count(new, options)
    except (ValgrindMissing, GatewayFailed) as error:
        print(error, file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"{error}\n{_text(error.stderr)}", file=sys.stderr)
        return 2
    made = rows(new_counts, base_counts, base.revision)
    errors = standard_errors(new_counts, base_counts)
    more: dict[str, object] = {"valgrind": valgrind, "standard_error": errors}
    for name, tree, counts in (("base", base, base_counts), ("new", new, new_counts)):
        more[name] = {"revision": tree.revision, "windows": {"instructions": counts}}
    print(f"largest standard error of a ratio: {max(errors.values()):.2%}")
    return write_results("gateway-instructions", made, seed=options.seed, file=options.out, more=more)


def _count(tree: SourceTree, options: argparse.Namespace) -> Windows:
    print(f"{tree.revision}: compiling, unless it is compiled already ...", file=sys.stderr)
    copy, simulator = tree.compile(), tree.compile(with_simulator=True)
    counts: Windows = {}
    with tempfile.TemporaryDirectory(prefix="fairlead-instructions-") as temporary:
        folder = Path(temporary) if options.keep is None else options.keep / tree.folder.name
        print(f"{tree.revision}: counting requests ...", file=sys.stderr)
        for name, callers in (("keys", WITH_KEYS), ("open", WITHOUT_KEYS)):
            gateway = CountedGateway(tree, copy, folder / name, callers=callers, options=options)
            for units in gateway.windows():
                for unit, count in units.items():
                    counts.setdefault(unit, []).append(round(count, 1))
        print(f"{tree.revision}: counting routing decisions ...", file=sys.stderr)
        _count_decisions(tree, simulator, folder / "routing", counts, options)
    return counts


def _count_decisions(tree: SourceTree, copy: Path, folder: Path, counts: Windows, options: argparse.Namespace) -> None:
    folder.mkdir(parents=True)
    environ = tree.environment(os.environ)
    environ["PYTHONPATH"] = f"{copy}{os.pathsep}{environ['PYTHONPATH']}"
    command = [*valgrind_command(folder), sys.executable, str(_PROGRAM)]
    with subprocess.Popen(
        command, env=environ, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None

        requests, replies = program.stdin, program.stdout

        def say(line: str, expected: str) -> None:
            requests.write(f"{line}\n")
            if (answer := replies.readline().strip()) != expected:
                raise GatewayFailed(f"the routing program of {tree.revision} said {answer!r}, not {expected!r}")

        if program.stdout.readline().strip() != "ready":
            raise GatewayFailed(f"the routing program of {tree.revision} does not start")
        counter = InstructionCounter(program.pid, folder, keep_dumps=options.keep is not None)
        say(str(_DECISIONS_BEFORE), "drawn")
        say("", "done")
        counter.start()
        say(str(_DECISIONS), "drawn")
        say("", "done")
        for _ in range(options.windows):
            say(str(_DECISIONS), "drawn")
            count = counter.count(lambda: say("", "done"))
            counts.setdefault(DECISION, []).append(round(count / _DECISIONS, 1))
        program.stdin.close()


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    return parse_options(
        "gateway-instructions",
        "Instructions per request, chunk and routing decision of the compiled gateway, compared with an older commit.",
        arguments,
        base=(BASE, f"the commit to compare with ({BASE})"),
        new=(str, "the commit to count; without it the working tree"),
        windows=(3, "how often each script is counted; means are compared"),
        keep=(Path, "keep logs and callgrind's dumps there"),
        seed=1,
    )


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
