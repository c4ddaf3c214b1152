"""Instructions of a plain request by its caller, up to a tenant with limits and a budget.

    python -m fairlead_bench tenant-instructions [--new HEAD]

Each kind of caller has a gateway of its own, of the same compiled sources. No limit is ever
reached. Limits are those of requests and of tokens per minute, of tokens per day, and a monthly
budget.

Of the working tree, the processor time of limits is measured, too (`quota.request_cost`).
"""

from collections.abc import Mapping
from functools import partial

from fairlead_bench.gateway_instructions.counted_gateway import KEY_DIGEST, Callers, keyed_callers
from fairlead_bench.gateway_instructions.instruction_table import InstructionTable, Windows, means
from fairlead_bench.gateway_instructions.scenarios import PLAIN, plain_scenario
from fairlead_bench.quota.request_cost import cost_rows, request_cost
from fairlead_bench.results import ResultRow, load_goals

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
    found = {
        NO_KEYS: Callers("", "", plain_scenario, partial(_cost, NO_KEYS)),
        WITH_KEY: keyed_callers(plain_scenario, partial(_cost, WITH_KEY)),
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
    wanted, counted = load_goals(NAME), means(windows)
    found = [wanted.value(f"instructions per {unit}", "", count) for unit, count in counted.items()]
    for unit in (LIMITED, STRICT):
        for other in (WITH_KEY, TENANT, NO_KEYS):
            found.append(wanted.ratio(f"instructions of a {unit} ÷ {other}", "", counted[unit], other, counted[other]))
    return found


def _tenant(spec: str) -> str:
    return (
        "apiVersion: serving.fairlead.io/v1alpha1\nkind: ModelTenant\nmetadata: {name: bench}\nspec:\n"
        f'  keys: [{{name: bench, digest: "{KEY_DIGEST}"}}]\n{spec}'
    )


def _cost(unit: str, counts: Mapping[str, float], turns: Mapping[str, int]) -> dict[str, float]:
    return {unit: counts["plain"] / turns["plain"]}


main = InstructionTable(
    NAME,
    tuple(callers_by_unit().values()),
    lambda windows, *_: rows(windows),
    more_rows=lambda seed: cost_rows(request_cost(seed)),
).run
