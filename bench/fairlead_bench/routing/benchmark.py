"""The routing benchmark's command line. A missed goal stays in the table and fails nothing."""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

from fairlead_bench.measurement_cache import print_progress
from fairlead_bench.results import ResultRow, write_results
from fairlead_bench.routing import demo_rows
from fairlead_bench.routing.grid_plot import GridTable, draw
from fairlead_bench.routing.measurement import RoutingMeasurements
from fairlead_bench.routing.preset_grid import grid_rows
from fairlead_bench.routing.result_rows import RoutingRows
from fairlead_cli.replay.traffic import load_traffic
from fairlead_gateway.routing import PRESETS
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import BUNDLED_TRACE

PARTS = ("demo", "bars", "grid")


def main(arguments: list[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    parser = argparse.ArgumentParser(description="Routing presets in the fleet simulator.")
    parser.add_argument(
        "--trace", type=Path, help="a trace in Mooncake's format; without it one is generated for the demo"
    )
    parser.add_argument("--live", type=Path, help="report.json of a demo, for the live rows")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure")
    parser.add_argument("--seeds", default="11,12", help="of traffic and homes; none of these was tuned on")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 16))
    parser.add_argument("--out", type=Path, default=Path("out/bench/routing.json"))
    given = parser.parse_args(arguments)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    if unknown := set(given.only.split(",")) - set(PARTS):
        parser.error(f"--only: there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    rows = list(_rows(given, seeds))
    if "grid" in given.only.split(","):
        grid = GridTable(rows, list(FAMILIES), PRESETS)
        draw(
            grid,
            given.out.with_name("routing-grid.png"),
            title=f"Share of first tokens within 5 s, seeds {given.seeds}",
        )
        given.out.with_name("routing-grid.md").write_text(grid.table(), encoding="utf-8")
    write_results(
        "routing", rows, seed=seeds[0], file=given.out, load_average=[os.getloadavg()[0]], more={"seeds": seeds}
    )
    return 0


def _rows(given: argparse.Namespace, seeds: list[int]) -> Iterator[ResultRow]:
    parts = given.only.split(",")
    if "demo" in parts:
        wanted = load_traffic(given.trace or BUNDLED_TRACE, limit=1_000, rate=demo_rows.RATE, seed=0)
        print(f"traffic of the demo: {wanted.name}, {len(wanted.requests)} requests")
        yield from demo_rows.simulated_rows(wanted, 0)
        if given.live is not None:
            yield from demo_rows.live_rows(json.loads(given.live.read_text(encoding="utf-8")))
    if given.trace is None and ("bars" in parts or "grid" in parts):
        print("no --trace: rows of the recorded conversations are left out")
    lab = RoutingMeasurements(given.out.with_name("routing-cells.jsonl"), given.trace, given.jobs, print_progress)
    if "bars" in parts:
        yield from RoutingRows(lab, seeds).rows()
    if "grid" in parts:
        yield from grid_rows(lab, seeds[:1])
