"""Moves of running streams between engines that only decode, as computation and as copies of KV.

    python -m fairlead_bench balance-decode [--out out/bench/balance-decode.json]
                                            [--requests 5000] [--seeds 101,102,103]

ARES (arXiv 2510.13668) moves streams between decode instances, and copies their KV. Here, eight
engines of 120,000 tokens get answers of 1,000 tokens in the median, some of 16,000. Prompts are
computed elsewhere. Dispatch is to the engine with fewest requests.

Rates go by steps of 0.25/s. Without moves, less than a tenth of the requests is preempted up to the
first of `RATES`, over seeds 1 to 3 together. The fleet is full at times then, so the next lower
rate is there, too.

Gateways compute a moved stream again. vLLM copies the KV of no running request to another engine.
So the rows that copy KV show what such a copy would give. A copy takes 20 ms and 57,344 bytes a
token over a link of 12 GB/s, and delays its own stream alone.
"""

from typing import Final

from fairlead.fleet.model import KvPullSource
from fairlead_bench.results import load_goals, parse_options, write_results
from fairlead_bench.routing.balance import BalanceFleet, load_rows, poisson_arrivals, reasoning_lengths
from fairlead_bench.scheduling import A100

NAME: Final = "balance-decode"
RATES: Final = (7.25, 7.0)
LINK: Final = KvPullSource("", bytes_per_token=57_344, bytes_per_second=12e9, latency_seconds=0.02)


def main(arguments: list[str]) -> int:
    """Measures, writes and prints. A goal that does not hold stays in the table."""
    given = parse_options(
        NAME, "Moves between engines that only decode.", arguments, requests=5_000, seeds=[101, 102, 103]
    )
    wanted, fleet = load_goals(NAME), BalanceFleet(A100, only_decodes=True, link=LINK)
    rows = [
        row
        for rate in RATES
        for row in load_rows(
            wanted,
            f"decode at {rate:g}/s",
            fleet,
            [poisson_arrivals(reasoning_lengths, rate, seed, given.requests) for seed in given.seeds],
        )
    ]
    write_results(NAME, rows, seed=given.seeds[0], file=given.out, more={"seeds": given.seeds})
    return 0
