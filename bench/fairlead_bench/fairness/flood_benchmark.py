"""A flooding tenant and steady ones on processes, compared with one ideal queue.

    python -m fairlead_bench flood [--seconds 80] [--parts flood,weights,overload]

- `flood`: one tenant keeps 100 requests in flight, two others send less than their shares.
- `weights`: two floods with weights 1 and 3.
- `overload`: goodput where more is offered than the engines can do.

Each with one gateway and with three, and with engines bound by sequences and by memory. The first
two compare the processes with the simulator, which plans no memory, at engines bound by sequences.
"""

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from fairlead_bench.fairness.benchmark import percentile
from fairlead_bench.fairness.flood_processes import BOUNDS, FLOOD, IN_FLIGHT, STEADY, FloodRun, flood_run, offered_run
from fairlead_bench.fairness.flood_simulation import simulated_service, simulated_waits
from fairlead_bench.results import ResultRow, load_goals, ratio_row, value_row, write_results

PARTS = ("flood", "weights", "overload")
GATEWAYS = (1, 3)
LOADS = (0.5, 1.0, 2.0, 3.0)
"""Offered load, as a multiple of what the engines can do."""
_NAME = "flood"
_LIGHT, _HEAVY = "weight-1", "weight-3"


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark, prints the table and writes it; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=100.0, help="of each run, the warm-up included")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/bench/flood.json"))
    given = parser.parse_args(arguments)
    parts = given.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    goals, rows, loads = load_goals(_NAME), list[ResultRow](), [os.getloadavg()[0]]
    for part, measure in (("flood", _flood_rows), ("weights", _weight_rows)):
        for bound in BOUNDS if part in parts else ():
            for gateways in GATEWAYS:
                rows += measure(bound, gateways, given.seconds, given.seed, goals)
                loads.append(os.getloadavg()[0])
    for bound in BOUNDS if "overload" in parts else ():
        rows += _overload_rows(bound, given.seconds, given.seed, goals)
        loads.append(os.getloadavg()[0])
    write_results(_NAME, rows, seed=given.seed, file=given.out, load_average=loads)
    return 0 if all(row.holds for row in rows) else 1


def _title(bound: str, gateways: int) -> str:
    return f"engines bound by {bound}, {gateways} gateway{'s' if gateways > 1 else ''}"


def _flood_rows(bound: str, gateways: int, seconds: float, seed: int, goals: dict[str, str]) -> list[ResultRow]:
    weights = {FLOOD: 1.0, **dict.fromkeys(STEADY, 1.0)}
    run = asyncio.run(flood_run(bound, gateways, seconds, seed, weights, {FLOOD: IN_FLIGHT}))
    title, rows = _title(bound, gateways), list[ResultRow]()
    for name, share in (("median", 0.5), ("p99", 0.99)):
        metric = f"TTFT of the steady tenants, {name}: {title}"
        real, ideal = (percentile(found, share) for found in (run.first_tokens(STEADY), run.ideal_first_tokens(STEADY)))
        rows.append(ratio_row(metric, "s", real, "one ideal queue", ideal, goals.get(metric)))
    metric = f"throughput: {title}"
    rows.append(
        ratio_row(metric, "tokens/s", run.throughput(), "all sequences busy", run.ideal_throughput(), goals.get(metric))
    )
    metric = f"refused or failed requests of the steady tenants: {title}"
    lost = float(sum(one.status != 200 for one in run.answers if one.tenant in STEADY))
    rows.append(value_row(metric, "requests", lost, goals.get(metric)))
    if bound == "sequences":
        simulated = simulated_waits(run.answers, {FLOOD: IN_FLIGHT}, gateways, seconds)
        waits = [wait - run.alone_seconds for wait in run.first_tokens(STEADY)]
        metric = f"wait of the steady tenants, median, processes ÷ simulator: {title}"
        rows.append(
            ratio_row(metric, "s", percentile(waits, 0.5), "simulator", percentile(simulated, 0.5), goals.get(metric))
        )
    rows.append(value_row(f"requests in the engines' own queues, mean: {title}", "requests", run.mean_queue(), None))
    rows.append(value_row(f"busy share of the machine: {title}", "share", run.busy, None))
    return rows


def _weight_rows(bound: str, gateways: int, seconds: float, seed: int, goals: dict[str, str]) -> list[ResultRow]:
    weights, floods = {_LIGHT: 1.0, _HEAVY: 3.0}, {_LIGHT: IN_FLIGHT // 2, _HEAVY: IN_FLIGHT // 2}
    run: FloodRun = asyncio.run(flood_run(bound, gateways, seconds, seed, weights, floods))
    light, heavy, title = run.served(_LIGHT), run.served(_HEAVY), _title(bound, gateways)
    metric = f"service of weight 3: {title}"
    rows = [ratio_row(metric, "tokens", heavy, "3 × that of weight 1", 3 * light, goals.get(metric))]
    if bound == "sequences":
        simulated = simulated_service(weights, floods, gateways, seconds)
        metric = f"share of weight 3, processes ÷ simulator: {title}"
        versus = simulated[_HEAVY] / sum(simulated.values())
        rows.append(ratio_row(metric, "share", heavy / (light + heavy), "simulator", versus, goals.get(metric)))
    return rows


def _overload_rows(bound: str, seconds: float, seed: int, goals: dict[str, str]) -> list[ResultRow]:
    found = {load: asyncio.run(offered_run(bound, 3, seconds, seed, load)).throughput() for load in LOADS}
    best = max(found.values())
    rows: list[ResultRow] = []
    for load, tokens in found.items():
        metric = f"goodput at {load:g} × capacity: {_title(bound, 3)}"
        rows.append(ratio_row(metric, "tokens/s", tokens, "the best of all loads", best, goals.get(metric)))
    return rows
