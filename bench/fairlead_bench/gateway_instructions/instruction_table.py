"""A table of counted units: its gateways, an older commit to compare with, and its command line.

Each state of the sources is exported, compiled and counted, one after the other.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fairlead_bench.gateway_instructions.counted_gateway import (
    Callers,
    CountedGateway,
    GatewayFailed,
    SourceTree,
    ValgrindMissing,
    ensure_valgrind,
    export_commit,
    export_sources,
)
from fairlead_bench.registry import PARTS
from fairlead_bench.results import ResultRow, parse_options, write_results

Windows: TypeAlias = dict[str, list[float]]
"""Unit → instructions of one such unit, in each window."""

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class InstructionTable:
    """The counts of one benchmark.

    callers: a gateway is counted for each of them.
    rows: makes rows of the new counts, those of the base, and the revision of the base.
    base: the commit to compare with; empty without a comparison.
    base_callers: those of the base; by default the same.
    count_more: counts in a tree without a gateway; gets a folder for logs.
    more_rows: rows of the working tree that count no instructions; gets the seed.
    """

    name: str
    callers: Sequence[Callers]
    rows: Callable[[Windows, Windows, str], list[ResultRow]]
    base: str = ""
    base_callers: Sequence[Callers] = ()
    count_more: Callable[[SourceTree, Path, argparse.Namespace], Windows] | None = None
    more_rows: Callable[[int], list[ResultRow]] | None = None

    def run(self, arguments: Sequence[str]) -> int:
        """Counts, writes, prints; 0 when every goal holds, 2 when counting was impossible."""
        options = self._options(arguments)
        before: Windows = {}
        states: dict[str, object] = {}
        revision = ""
        try:
            valgrind = ensure_valgrind()
            if self.base:
                tree = export_commit(ROOT, options.base, f"{self.name}-base")
                revision, before = tree.revision, self._count(tree, self.base_callers or self.callers, options)
                states["base"] = {"revision": revision, "windows": {"instructions": before}}
            tree = export_sources(ROOT, options.new, f"{self.name}-head")
            counts = self._count(tree, self.callers, options)
        except (ValgrindMissing, GatewayFailed, subprocess.CalledProcessError) as error:
            print(error, file=sys.stderr)
            if output := getattr(error, "stderr", None):
                print(output.decode(errors="replace") if isinstance(output, bytes) else output, file=sys.stderr)
            return 2
        states["new"] = {"revision": tree.revision, "windows": {"instructions": counts}}
        errors = standard_errors(counts, before)
        if before:
            print(f"largest standard error of a ratio: {max(errors.values()):.2%}")
        made = self.rows(counts, before, revision)
        if self.more_rows is not None and not options.new:
            made += self.more_rows(options.seed)
        more = {"valgrind": valgrind, "standard_error": errors, **states}
        return write_results(self.name, made, seed=options.seed, file=options.out, more=more)

    def _count(self, tree: SourceTree, callers: Sequence[Callers], options: argparse.Namespace) -> Windows:
        print(f"{tree.revision}: compiling, unless it is compiled already ...", file=sys.stderr)
        copy = tree.compile()
        counts: Windows = {}
        with tempfile.TemporaryDirectory(prefix="fairlead-instructions-") as temporary:
            folder = Path(temporary) if options.keep is None else options.keep / tree.folder.name
            for number, one in enumerate(callers, 1):
                print(f"{tree.revision}: counting gateway {number} of {len(callers)} ...", file=sys.stderr)
                gateway = CountedGateway(tree, copy, folder / str(number), callers=one, options=options)
                for units in gateway.windows():
                    for unit, count in units.items():
                        counts.setdefault(unit, []).append(round(count, 1))
            if self.count_more is not None:
                counts |= self.count_more(tree, folder / "more", options)
        return counts

    def _options(self, arguments: Sequence[str]) -> argparse.Namespace:
        base = {"base": (self.base, f"the commit to compare with ({self.base})")} if self.base else {}
        return parse_options(
            self.name,
            PARTS[self.name].summary(),
            arguments,
            **base,
            new=(str, "the commit to count; without it the working tree"),
            windows=(3, "how often each script is counted; means are compared"),
            keep=(Path, "keep logs and callgrind's dumps there"),
            seed=1,
        )


def means(windows: Windows) -> Mapping[str, float]:
    return {unit: statistics.fmean(counts) for unit, counts in windows.items()}


def standard_errors(new: Windows, base: Windows) -> dict[str, float]:
    """Returns unit → standard error of new ÷ base, from the quotients window by window.

    Why: equal windows do equal work, so quotients vary less than counts.
    """
    found = {}
    for unit, counts in new.items():
        quotients = [one / other for one, other in zip(counts, base.get(unit, ()), strict=False)]
        found[unit] = statistics.stdev(quotients) / len(quotients) ** 0.5 if len(quotients) > 1 else 0.0
    return found
