"""Placement of LoRA adapters: the gateway's rule and published ones, on a virtual clock.

    python -m fairlead_bench adapters [--out out/bench/adapters.json] [--seeds 11,12,13]

16 engines with 8 slots serve 1,000 adapters with Zipf popularity (exponent 1). A prompt takes
0.1 s, an answer holds the slot for 2 s more, and a load takes 0.4 s in the median. Load times are
drawn, since none are recorded. The SLO is a first token within 1 s. The first minute does not
count.

The seeds differ from those of the development.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fairlead_bench.adapters.adapter_fleet import AdapterFleet, AdapterTraffic, PlacementRule, draw_requests
from fairlead_bench.adapters.placement_rules import FewestAdapters, GatewayPlacement, LeastRequests, RandomPlacement
from fairlead_bench.results import ResultRow, load_goals, ratio_row, value_row, write_results

ENGINES, SLOTS = 16, 8
SLO_SECONDS = 1.0
WARM_UP_SECONDS = 60.0
RATES = (30.0, 45.0)
RULES: Mapping[str, Callable[[int, Sequence[float]], PlacementRule]] = {
    "ours": lambda seed, loads: GatewayPlacement(ENGINES, SLOTS, loads),
    "random": lambda seed, loads: RandomPlacement(seed),
    "AIBrix": lambda seed, loads: FewestAdapters(),
    "S-LoRA": lambda seed, loads: LeastRequests(),
}


def attainment(rule: str, traffic: AdapterTraffic, seed: int) -> tuple[float, float]:
    """Returns the share of requests within the SLO, and the loads per request."""
    requests, loads = draw_requests(traffic, seed)
    fleet = AdapterFleet(ENGINES, SLOTS, loads, RULES[rule](seed, loads))
    fleet.run(requests)
    counted = [request for request in requests if request.at >= WARM_UP_SECONDS]
    within = sum(request.first_at is not None and request.first_at - request.at <= SLO_SECONDS for request in counted)
    return within / len(counted), fleet.loads_done / len(requests)


def rows(wanted: Mapping[str, str], seeds: Sequence[int], seconds: float) -> Iterator[ResultRow]:
    """Yields a row for each rule and rate, and for what the gateway's rule gains."""
    for rate in RATES:
        traffic = AdapterTraffic(rate=rate, seconds=seconds)
        found = {rule: [attainment(rule, traffic, seed) for seed in seeds] for rule in RULES}
        means = {rule: sum(share for share, _ in runs) / len(runs) for rule, runs in found.items()}
        at = f"at {rate:g} requests/s"
        for rule, runs in found.items():
            yield value_row(f"within the SLO {at}, {rule}", "share", means[rule], None)
            loads = sum(loads for _, loads in runs) / len(runs)
            yield value_row(f"loads per request {at}, {rule}", "loads", loads, None)
        for rule in tuple(RULES)[1:]:
            metric = f"within the SLO {at}: ours ÷ {rule}"
            yield ratio_row(metric, "share", means["ours"], rule, means[rule], wanted[metric])


def main(arguments: list[str]) -> int:
    """Measures, writes and prints. A goal that does not hold stays in the table."""
    parser = argparse.ArgumentParser(description="Placement of LoRA adapters.")
    parser.add_argument("--out", type=Path, default=Path("out/bench/adapters.json"))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seeds", default="11,12,13")
    given = parser.parse_args(arguments)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    found = list(rows(load_goals("adapters"), seeds, given.seconds))
    write_results("adapters", found, seed=seeds[0], file=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
