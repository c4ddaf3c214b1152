"""Limits of tenants: under faults, and compared with LiteLLM, AIBrix and Envoy AI Gateway.

    python -m fairlead_bench quota [--parts faults,simulated,loopback,cost] [--keep FILE]

- `faults`: gateways die and Redis loses its state (`gateway_faults`).
- `simulated`: over-run and under-use compared with presets of others, in simulated time.
- `loopback`: the same of real gateways and LiteLLM's proxies with one real Redis.
- `cost`: processor time that limits add to a request.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fairlead_bench.quota import comparison, gateway_faults
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results

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
    given = parse_options(
        _NAME,
        __doc__,
        arguments,
        parts=list(PARTS),
        seeds=([1, 2, 3], "of the traffic; the first one for processes"),
        windows=(4, "minutes over loopback that are judged"),
        keep=(Path, "results from which the rows of other parts are kept"),
    )
    goals = load_goals(_NAME)
    found = gateway_faults.rows(given.seeds[0], goals) if "faults" in given.parts else []
    with ProcessPoolExecutor() as pool:
        compared = comparison.measure(given.parts, given.seeds, given.windows, pool.map)
    found += comparison.rows(compared, goals)
    if given.keep is not None:
        found = [*kept_rows(given.keep, given.parts), *found]
    more = {"absent": compared.absent} if compared.absent else None
    return write_results(_NAME, found, seed=given.seeds[0], file=given.out, more=more)


def kept_rows(file: Path, parts: Sequence[str]) -> list[ResultRow]:
    """Returns the rows of an earlier run that belong to other parts."""
    rows = [ResultRow(**row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    measured = tuple(begin for part in parts for begin in PARTS[part])
    return [row for row in rows if not row.metric.startswith(measured)]
