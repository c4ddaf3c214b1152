"""Limits of tenants: under faults, and compared with LiteLLM, AIBrix and Envoy AI Gateway.

    python -m fairlead_bench quota [--parts faults,simulated,loopback,cost] [--keep FILE]

- `faults`: gateways die and Redis loses its state (`gateway_faults`).
- `simulated`: over-run and under-use compared with presets of others, in simulated time.
- `loopback`: the same of real gateways and LiteLLM's proxies with one real Redis.
- `cost`: processor time that limits add to a request.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fairlead_bench.quota import comparison, gateway_faults
from fairlead_bench.results import ResultRow, load_goals, write_results

PARTS = {
    "faults": gateway_faults.METRICS,
    "simulated": ("simulated, ",),
    "loopback": ("over loopback, ", "over loopback: "),
    "cost": ("processor time of a request: ",),
}
"""The parts, and how the metrics of each begin."""
_NAME = "quota"


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark, prints the table and writes it; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seeds", default="1,2,3", help="of the traffic; the first one for processes")
    parser.add_argument("--windows", type=int, default=4, help="minutes over loopback that are judged")
    parser.add_argument("--keep", type=Path, help="results from which the rows of other parts are kept")
    parser.add_argument("--out", type=Path, default=Path("out/bench/quota.json"))
    given = parser.parse_args(arguments)
    parts = given.parts.split(",")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    seeds = [int(seed) for seed in given.seeds.split(",")]
    goals = load_goals(_NAME)
    loads = [os.getloadavg()[0]]
    found = gateway_faults.rows(seeds[0], goals) if "faults" in parts else []
    with ProcessPoolExecutor() as pool:
        compared = comparison.measure(parts, seeds, given.windows, pool.map)
    found += comparison.rows(compared, goals)
    loads.append(os.getloadavg()[0])
    if given.keep is not None:
        found = [*kept_rows(given.keep, parts), *found]
    more = {"absent": compared.absent} if compared.absent else None
    write_results(_NAME, found, seed=seeds[0], file=given.out, load_average=loads, more=more)
    return 0 if all(row.holds for row in found) else 1


def kept_rows(file: Path, parts: Sequence[str]) -> list[ResultRow]:
    """Returns the rows of an earlier run that belong to other parts."""
    rows = [ResultRow(**row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    measured = tuple(begin for part in parts for begin in PARTS[part])
    return [row for row in rows if not row.metric.startswith(measured)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
