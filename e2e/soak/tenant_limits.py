"""Limits of two tenants over three gateways, minute by minute, while parts of the system die.

Traffic and faults are those of the benchmark `quota`.
"""

import time
from pathlib import Path

from e2e.soak.gateway_processes import SEED, write
from fairlead_bench.quota.gateway_faults import (
    CLIENTS,
    FAULTS,
    REQUESTS,
    TOKENS,
    ledger_difference,
    measure,
    per_minute,
)
from fairlead_testing.reports import ReportLine

TOKEN_SHARE = 0.02
LEDGER_SHARE = 0.001


async def run(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun = time.monotonic()
    found = await measure(folder, SEED)
    requests = [(answers, answers + cut) for answers, _, cut in per_minute(found, "counted")]
    tokens = [used for _, used, _ in per_minute(found, "metered")]
    apart = ledger_difference(found, with_unwritten=False)
    lines = [
        ReportLine(
            "requests of each minute within one of the limit",
            requests,
            all(answers <= REQUESTS + 1 and with_cut >= REQUESTS - 1 for answers, with_cut in requests),
        ),
        ReportLine(
            "tokens of each minute within 2 % of the limit",
            tokens,
            all(abs(used - TOKENS) <= TOKEN_SHARE * TOKENS for used in tokens),
        ),
        ReportLine("ledger = engines' reported usage ± 0.1 %", round(apart, 6), abs(apart) <= LEDGER_SHARE),
    ]
    figures = {
        "streams_at_once": 2 * CLIENTS,
        "limits": {"requests": REQUESTS, "tokens": TOKENS},
        "faults": list(FAULTS),
        "statuses": {tenant: count.statuses for tenant, count in found.counts.items()},
        "cut": {tenant: len(count.cut) for tenant, count in found.counts.items()},
        "ledger_apart_with_the_last_seconds_of_the_killed_gateway": round(
            ledger_difference(found, with_unwritten=True), 6
        ),
    }
    return write("tenant limits", begun, figures, lines)
