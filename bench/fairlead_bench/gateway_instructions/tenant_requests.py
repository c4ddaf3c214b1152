"""Instructions of a plain request by its caller, up to a tenant with limits and a budget.

    python -m fairlead_bench tenant-instructions [--new HEAD]

Each kind of caller has a gateway of its own, of the same compiled sources. No limit is ever
reached. Limits are those of requests and of tokens per minute, of tokens per day, and a monthly
budget.

Of the working tree, the processor time of limits is measured, too (`quota.request_cost`).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from fairlead_bench.gateway_instructions.benchmark import Windows
from fairlead_bench.gateway_instructions.counted_gateway import (
    KEY_DIGEST,
    Callers,
    CountedGateway,
    GatewayFailed,
    SourceTree,
    ValgrindMissing,
    ensure_valgrind,
    export_sources,
)
from fairlead_bench.gateway_instructions.scenarios import PLAIN, plain_scenario
from fairlead_bench.quota.request_cost import cost_rows, request_cost
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results

ROOT = Path(__file__).resolve().parents[3]
NAME = "tenant-instructions"
NO_KEYS, WITH_KEY = f"{PLAIN}, no keys", f"{PLAIN}, a key"
TENANT = f"{PLAIN}, a tenant"
LIMITED = f"{PLAIN}, a tenant with limits and a budget"
STRICT = f"{PLAIN}, a tenant with strict limits and a budget"
_LIMITS = (
    "  limits:\n    - {per: Minute, requests: 10000000, tokens: 1000000000}\n    - {per: Day, tokens: 1000000000000}\n"
    '  budget: {usd: "10000000", per: Month}\n'
)
_LEASE_SECONDS = 7.0
"""The first strict limit of a tenant grants nothing for one lease."""


def callers_by_unit() -> dict[str, Callers]:
    """Returns the kinds of callers by the unit that is counted with them."""
    key = f'keys:\n  - {{name: bench, digest: "{KEY_DIGEST}"}}\n'
    found = {
        NO_KEYS: Callers("", "", plain_scenario, partial(_cost, NO_KEYS)),
        WITH_KEY: Callers("--keys", key, plain_scenario, partial(_cost, WITH_KEY)),
        TENANT: Callers("--tenants", _tenant(""), plain_scenario, partial(_cost, TENANT)),
    }
    for unit, spec in ((LIMITED, _LIMITS), (STRICT, f"  enforcement: Strict\n{_LIMITS}")):
        cost = partial(_cost, unit)
        found[unit] = Callers(
            "--tenants", _tenant(spec), plain_scenario, cost, is_priced=True, warm_up_seconds=_LEASE_SECONDS
        )
    return found


def rows(windows: Windows) -> list[ResultRow]:
    """Returns a row for each unit, and the ratios that have a goal."""
    wanted, found = load_goals(NAME), []
    counted = {unit: statistics.fmean(counts) for unit, counts in windows.items()}
    for unit, value in counted.items():
        found.append(wanted.value(f"instructions per {unit}", "", value))
    for unit in (LIMITED, STRICT):
        for other in (WITH_KEY, TENANT, NO_KEYS):
            found.append(wanted.ratio(f"instructions of a {unit} ÷ {other}", "", counted[unit], other, counted[other]))
    return found


def main(arguments: Sequence[str]) -> int:
    """Counts, writes, prints; 0 when every goal holds, 2 when counting was impossible."""
    options = _options(arguments)
    try:
        valgrind = ensure_valgrind()
        tree = export_sources(ROOT, options.new, NAME)
        windows = _count(tree, options)
    except (ValgrindMissing, GatewayFailed) as error:
        print(error, file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(error, file=sys.stderr)
        return 2
    made = rows(windows)
    if not options.new:
        made += cost_rows(request_cost(options.seed))
    more: dict[str, object] = {"valgrind": valgrind, "revision": tree.revision, "windows": {"instructions": windows}}
    return write_results(NAME, made, seed=options.seed, file=options.out, more=more)


def _count(tree: SourceTree, options: argparse.Namespace) -> Windows:
    print(f"{tree.revision}: compiling, unless it is compiled already ...", file=sys.stderr)
    copy = tree.compile()
    windows: Windows = {}
    with tempfile.TemporaryDirectory(prefix="fairlead-instructions-") as temporary:
        folder = Path(temporary) if options.keep is None else options.keep
        for number, (unit, callers) in enumerate(callers_by_unit().items()):
            print(f"{tree.revision}: counting {unit} ...", file=sys.stderr)
            gateway = CountedGateway(tree, copy, folder / str(number), callers=callers, options=options)
            windows[unit] = [round(units[unit], 1) for units in gateway.windows()]
    return windows


def _tenant(spec: str) -> str:
    return (
        "apiVersion: serving.fairlead.io/v1alpha1\nkind: ModelTenant\nmetadata: {name: bench}\nspec:\n"
        f'  keys: [{{name: bench, digest: "{KEY_DIGEST}"}}]\n{spec}'
    )


def _cost(unit: str, counts: Mapping[str, float], turns: Mapping[str, int]) -> dict[str, float]:
    return {unit: counts["plain"] / turns["plain"]}


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    return parse_options(
        NAME,
        "Instructions of a plain request by its caller, up to a tenant with limits and a budget.",
        arguments,
        new=(str, "the commit to count; without it the working tree"),
        windows=(3, "how often each script is counted; means are compared"),
        keep=(Path, "keep logs and callgrind's dumps there"),
        seed=1,
    )
