"""Instructions of a relayed chunk, whether or not the gateway can continue the stream.

    python -m fairlead_bench stream-instructions [--new HEAD] [--base HEAD~3]

To continue a stream, the gateway asks its engine for the ids of tokens, keeps them, and takes them
out of each event. Each kind of stream has a gateway of its own, of the same compiled sources. The
base is a commit that could not continue streams from their tokens.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead_bench.gateway_instructions.benchmark import Windows, standard_errors
from fairlead_bench.gateway_instructions.counted_gateway import (
    KEY_DIGEST,
    Callers,
    CountedGateway,
    GatewayFailed,
    SourceTree,
    ValgrindMissing,
    ensure_valgrind,
    export_commit,
    export_sources,
)
from fairlead_bench.gateway_instructions.scenarios import CHUNK, STREAM, cost_of_streams, stream_scenarios
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results

BASE = "98751bf8"
"""The commit before streams could be continued from their tokens."""
ROOT = Path(__file__).resolve().parents[3]
NAME = "stream-instructions"
ON, OFF, UNKNOWN = "ids asked for", "resume: Never", "ids asked for, the engine sends none"


@dataclass(frozen=True, slots=True)
class StreamKind:
    """A kind of stream: the setting of its model, and whether its engines send ids."""

    resume: str = ""
    knows_ids: bool = True


KINDS = {OFF: StreamKind("Never"), ON: StreamKind(), UNKNOWN: StreamKind(knows_ids=False)}


def rows(windows: Windows, base: Windows, revision: str) -> list[ResultRow]:
    """Returns a row for each unit of each kind, compared with the base, and the ratios to `OFF`.

    windows: the instructions of a unit and kind.
    """
    wanted, found = load_goals(NAME), []
    counted = {unit: statistics.fmean(counts) for unit, counts in windows.items()}
    before = {unit: statistics.fmean(counts) for unit, counts in base.items()}
    for unit in (CHUNK, STREAM):
        for kind in KINDS:
            name = f"instructions per {unit}, {kind}"
            found.append(wanted.ratio(name, "", counted[f"{unit}, {kind}"], revision, before.get(f"{unit}, {kind}")))
        off = counted[f"{unit}, {OFF}"]
        for kind in (ON, UNKNOWN):
            name = f"instructions of a {unit}, {kind} ÷ {OFF}"
            found.append(wanted.ratio(name, "", counted[f"{unit}, {kind}"], OFF, off))
    return found


def main(arguments: Sequence[str]) -> int:
    """Counts, writes, prints; 0 when every goal holds, 2 when counting was impossible."""
    options = _options(arguments)
    try:
        valgrind = ensure_valgrind()
        base = export_commit(ROOT, options.base, f"{NAME}-base")
        new = export_sources(ROOT, options.new, f"{NAME}-head")
        plain = _count(base, {OFF: StreamKind()}, options)
        before = {f"{unit}, {kind}": plain[f"{unit}, {OFF}"] for unit in (CHUNK, STREAM) for kind in KINDS}
        windows = _count(new, KINDS, options)
    except (ValgrindMissing, GatewayFailed, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 2
    errors = standard_errors(windows, before)
    print(f"largest standard error of a ratio: {max(errors.values()):.2%}")
    more: dict[str, object] = {"valgrind": valgrind, "revision": new.revision, "standard_error": errors}
    more |= {"windows": {"instructions": windows, "base": plain}}
    return write_results(NAME, rows(windows, before, base.revision), seed=options.seed, file=options.out, more=more)


def _count(tree: SourceTree, kinds: dict[str, StreamKind], options: argparse.Namespace) -> Windows:
    print(f"{tree.revision}: compiling, unless it is compiled already ...", file=sys.stderr)
    copy = tree.compile()
    windows: Windows = {}
    with tempfile.TemporaryDirectory(prefix="fairlead-instructions-") as temporary:
        folder = Path(temporary) if options.keep is None else options.keep / tree.folder.name
        for number, (name, kind) in enumerate(kinds.items()):
            print(f"{tree.revision}: counting streams, {name} ...", file=sys.stderr)
            key = f'keys:\n  - {{name: bench, digest: "{KEY_DIGEST}"}}\n'
            callers = Callers(
                "--keys", key, stream_scenarios, cost_of_streams, resume=kind.resume, knows_ids=kind.knows_ids
            )
            gateway = CountedGateway(tree, copy, folder / str(number), callers=callers, options=options)
            for units in gateway.windows():
                for unit, count in units.items():
                    windows.setdefault(f"{unit}, {name}", []).append(round(count, 1))
    return windows


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    return parse_options(
        NAME,
        "Instructions of a relayed chunk, whether or not the gateway can continue the stream.",
        arguments,
        base=(BASE, f"the commit to compare with, which must not know the setting `resume` ({BASE})"),
        new=(str, "the commit to count; without it the working tree"),
        windows=(3, "how often each script is counted; means are compared"),
        keep=(Path, "keep logs and callgrind's dumps there"),
        seed=1,
    )
