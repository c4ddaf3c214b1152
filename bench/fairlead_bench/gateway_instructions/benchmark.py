"""Instructions per request, chunk and routing decision, compared with an older commit."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from fairlead_bench.gateway_instructions.counted_gateway import (
    WITH_KEYS,
    WITHOUT_KEYS,
    GatewayFailed,
    InstructionCounter,
    SourceTree,
    valgrind_command,
)
from fairlead_bench.gateway_instructions.instruction_table import InstructionTable, Windows, means
from fairlead_bench.gateway_instructions.scenarios import MESSAGES, PLAIN, RESPONSES, WAITING
from fairlead_bench.results import ResultRow, load_goals

NAME = "gateway-instructions"
BASE = "7ff6b5ed"
"""The commit before the data plane was cut for crowded machines."""
DECISION = "routing decision"
_DECISIONS = 400
_DECISIONS_BEFORE = 1_200
"""Decisions before the first window: every conversation has started again by then."""
_PROGRAM = Path(__file__).with_name("routing_program.py")


def rows(new: Windows, base: Windows, revision: str) -> list[ResultRow]:
    """Returns a row per unit: means of the windows, and the new one ÷ the base."""
    wanted, counted, before = load_goals(NAME), means(new), means(base)
    found = [
        wanted.ratio(f"instructions per {unit}", "", count, revision, before.get(unit))
        for unit, count in counted.items()
    ]
    if PLAIN in counted and WAITING in counted:
        compared = {f"a {WAITING}": WAITING}
        for dialect in (MESSAGES, RESPONSES):
            unit = f"plain request in {dialect}"
            if unit in counted:
                compared[f"a {unit}"] = unit
        for title, unit in compared.items():
            found.append(wanted.value(f"instructions of {title} ÷ {PLAIN}", "", counted[unit] / counted[PLAIN]))
    return found


def count_decisions(tree: SourceTree, folder: Path, options: argparse.Namespace) -> Windows:
    """Returns the instructions of the routing decision without HTTP, in the compiled simulator."""
    copy = tree.compile(with_simulator=True)
    print(f"{tree.revision}: counting routing decisions ...", file=sys.stderr)
    folder.mkdir(parents=True)
    environ = tree.environment(os.environ)
    environ["PYTHONPATH"] = f"{copy}{os.pathsep}{environ['PYTHONPATH']}"
    command = [*valgrind_command(folder), sys.executable, str(_PROGRAM)]
    windows: list[float] = []
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
            windows.append(round(count / _DECISIONS, 1))
        program.stdin.close()
    return {DECISION: windows}


main = InstructionTable(NAME, (WITH_KEYS, WITHOUT_KEYS), rows, base=BASE, count_more=count_decisions).run
