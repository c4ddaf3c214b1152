"""The index benchmark's command line: each kind of traffic several times in turn, then ten million
blocks, then the baseline."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fairlead.runtime.compiled_build import is_compiled
from fairlead_bench.index.index_processes import EventTraffic, run, run_baseline
from fairlead_bench.index.mirror_lookup import measure_matches
from fairlead_bench.index.result_rows import TEN_MILLION, IndexFigures, rows
from fairlead_bench.results import write_results
from fairlead_kvstore.blockstore import block_table as blocks

ROOT: Final = Path(__file__).resolve().parents[3]
_BLOCKS: Final = {"prompts": 1_000_000, "eviction": 600_000, "decoding": 200_000, "alone": 100_000}
_ENGINES: Final = {"prompts": 16, "eviction": 4, "decoding": 4, "alone": 4}
_RATE: Final = 150_000
"""Blocks a second that are published: more than one indexer on one core follows, so that it is
never idle."""


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when every goal holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=2, help="how often each kind of traffic is measured; medians count"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the blocks; below 1 the result settles nothing")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--without", action="append", default=[], choices=("many", "naive"), help="leave a part out")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench" / "index.json")
    options = parser.parse_args(arguments)
    loads = [os.getloadavg()[0]]
    found = IndexFigures(matches=measure_matches(options.seed))
    for _ in range(options.rounds):
        for kind, count in _BLOCKS.items():
            one = _plain(kind, round(count * options.share), _ENGINES[kind], options.seed, cold=kind == "prompts")
            found.runs.setdefault(kind, []).append(one)
            loads.append(os.getloadavg()[0])
    if "naive" not in options.without:
        found.naive = run_baseline("prompts", round(_BLOCKS["prompts"] * options.share), engines=16, seed=options.seed)
        print(f"naive: {json.dumps(found.naive)}", file=sys.stderr)
    if "many" not in options.without:
        found.many = _plain("prompts", round(TEN_MILLION * options.share), 16, options.seed, cold=True, emptied=True)
        loads.append(os.getloadavg()[0])
    made = rows(found)
    figures = {"runs": found.runs, "many": found.many, "naive": found.naive, "matches": found.matches}
    more = {"compiled": is_compiled(blocks.__file__), "figures": figures}
    write_results("index", made, seed=options.seed, file=options.out, load_average=loads, more=more)
    return 0 if all(row.holds for row in made) else 1


def _plain(kind: str, blocks: int, engines: int, seed: int, *, cold: bool, emptied: bool = False) -> dict[str, Any]:
    one = run(EventTraffic(kind, blocks, engines, _RATE, seed), cold=cold, emptied=emptied).plain()
    print(f"{kind}: {one['blocks'] / one['indexer']['cpu']:,.0f} blocks per CPU-second of the indexer", file=sys.stderr)
    return one
