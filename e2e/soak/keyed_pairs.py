"""Pairs of requests with one idempotency key over two gateways, each of which is killed many times.

No pair may be finished twice unless the gateway that finished it first was killed in between.
"""

import time
from pathlib import Path

from e2e.soak.gateway_processes import REPORT, scaled_count, write
from fairlead.fleet.file import write_fleet_file
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.keyed_pairs import GatewayKills, GatewayPair, PairedEngine, answers_posts, run_pairs
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.reports import ReportLine

PAIRS = ("FAIRLEAD_SOAK_PAIRS", 600, 10_000)
STRIKE_EVERY = 150
"""Pairs between a kill and the start of the next gateway, and from there to the next kill."""


async def run_keyed_pairs(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun, pairs, paired = time.monotonic(), scaled_count(*PAIRS), PairedEngine()
    async with scripted_engine(answers_posts(paired.script)) as engine:
        write_fleet_file(folder / "fleet.yaml", fleet_of([engine.url]))
        pair = GatewayPair(folder / "fleet.yaml")
        async with GatewayKills(pair) as kills:
            counts = await run_pairs(pair.urls, paired, pairs, kills, strike_every=STRIKE_EVERY)
            await kills.finish()
    figures = {
        "pairs": pairs,
        "kills": counts.kills,
        "finished_twice": counts.twice,
        "tries_again": counts.retries,
        "statuses": {str(status): count for status, count in sorted(counts.statuses.items())},
        "reruns": dict(kills.reruns),
    }
    lines = [
        ReportLine(f"{pairs} pairs are answered", len(paired.finished), len(paired.finished) == pairs),
        ReportLine("0 finished twice while the gateway that did it lives", counts.unexplained, not counts.unexplained),
        ReportLine("0 pairs whose answers differ but were finished once", counts.different, not counts.different),
        ReportLine("pairs of killed gateways are computed once more", counts.twice, True),
    ]
    return write("keyed_pairs", begun, figures, lines, REPORT.with_name("soak-keys.json"))
