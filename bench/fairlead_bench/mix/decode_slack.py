"""Prefill on decode engines with slack: eight engines, under short and long prompts.

One fleet gets one traffic in four ways:

- Every prompt goes to a prefill engine, as in the fixed division of the traffic shift.
- Prompts under the gateway's token limit stay on the engine that answers.
- The gateway decides by slack.
- There is no division: eight engines do both.

Attainment is at one rate. Capacity is the highest rate at which 99 % meet both SLOs.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import product, repeat

from fairlead.fleet.model import Role
from fairlead_bench.results import MapFunction, ResultRow, ratio_row, value_row
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.reference_pools import WARM_START, large_profile, reference_model, reference_pool
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.routing.prefill_placement import PrefillPolicy

ENGINES = 8
TTFT_SECONDS, ITL_SECONDS = 2.0, 0.1
SECONDS = 180.0
RATE = 16.0
"""Requests per second at which attainment is compared."""
DIVISIONS = (3, 4, 5, 6)
LONG_SHARE = 0.25
KEPT_SHARE = 0.99
_RATES = (4.0, 32.0)
_STEP = 1.0
NAMES: Mapping[PrefillPolicy, str] = {
    PrefillPolicy.APART: "always handed over",
    PrefillPolicy.BY_LENGTH: "handed over by length",
    PrefillPolicy.SLACK: "decided from slack",
}


def mixed_requests(rate: float, seed: int) -> ArrivalTrace:
    """Returns Poisson arrivals.

    A quarter has 4,000 to 12,000 tokens and answers of 150 on average. The others have 100 to 1,500
    and 300.
    """
    draw = random.Random(f"convertible {seed}")
    arrivals: list[float] = []
    prompts: list[int] = []
    outputs: list[int] = []
    at = 0.0
    while (at := at + draw.expovariate(rate)) < SECONDS:
        long = draw.random() < LONG_SHARE
        arrivals.append(at)
        prompts.append(draw.randint(4_000, 12_000) if long else draw.randint(100, 1_500))
        outputs.append(max(1, min(2_000, round(draw.expovariate(1.0 / (150.0 if long else 300.0))))))
    return ArrivalTrace(arrivals, prompts, outputs)


def serve(rate: float, prefill: int | None, computing: PrefillPolicy, seed: int) -> ControllerOutcome:
    """Serves with so many engines for prefill; None if each does both."""
    split = ((Role.SERVE, ENGINES),) if prefill is None else ((Role.PREFILL, prefill), (Role.DECODE, ENGINES - prefill))
    pools = [
        reference_pool(large_profile(), count, role=role, name=role.value.lower(), startup=WARM_START)
        for role, count in split
    ]
    facts = reference_model(pools, TTFT_SECONDS, ITL_SECONDS)
    made = AutoscalingScenario(
        "convertible", seed, SECONDS, facts, tuple(pools), mixed_requests(rate, seed), prefill_policy=computing
    )
    return run_controller(made, ScheduleController([]))


def capacity(prefill: int | None, computing: PrefillPolicy, seed: int) -> float:
    """Returns the highest rate at which enough are within both SLOs.

    It is exact to one request a second; 0 if there is none.
    """
    low, high = 0, round((_RATES[1] - _RATES[0]) / _STEP)
    while low < high:
        middle = (low + high + 1) // 2
        kept = serve(_RATES[0] + _STEP * middle, prefill, computing, seed).attainment >= KEPT_SHARE
        low, high = (middle, high) if kept else (low, middle - 1)
    return _RATES[0] + _STEP * low


def slo_attainment(prefill: int | None, computing: PrefillPolicy, seed: int) -> float:
    """Returns the share within the SLOs at one rate."""
    return serve(RATE, prefill, computing, seed).attainment


def convertible_rows(seed: int, bars: Mapping[str, str], each: MapFunction) -> list[ResultRow]:
    """Yields attainment of each division at one rate.

    Capacities of each way at its best and its worst division follow; none has a goal.
    """
    rows: list[ResultRow] = []
    what = f"{ENGINES} engines, short and long prompts"
    calls = [*product(DIVISIONS, PrefillPolicy), (None, PrefillPolicy.APART)]
    prefills, ways = zip(*calls, strict=True)
    shares, most = (each(call, prefills, ways, repeat(seed)) for call in (slo_attainment, capacity))
    share, carried = (dict(zip(calls, found, strict=True)) for found in (shares, most))
    for prefill in DIVISIONS:
        for how in (PrefillPolicy.APART, PrefillPolicy.BY_LENGTH):
            metric = f"P/D, {what}: within the objectives at {RATE:.0f}/s, {prefill} prefill: slack ÷ {NAMES[how]}"
            slack, other = share[prefill, PrefillPolicy.SLACK], share[prefill, how]
            rows.append(ratio_row(metric, "share", slack, NAMES[how], other, bars.get(metric)))
    metric = f"P/D, {what}: within the objectives at {RATE:.0f}/s, each engine does both"
    rows.append(value_row(metric, "share", share[None, PrefillPolicy.APART], None))
    rows += _capacities(what, {how: [carried[prefill, how] for prefill in DIVISIONS] for how in PrefillPolicy})
    metric = f"P/D, {what}: capacity at the best division: slack ÷ each engine does both"
    best = max(carried[prefill, PrefillPolicy.SLACK] for prefill in DIVISIONS)
    rows.append(
        ratio_row(metric, "requests/s", best, "each engine does both", carried[None, PrefillPolicy.APART], None)
    )
    return rows


def _capacities(what: str, carried: Mapping[PrefillPolicy, Sequence[float]]) -> list[ResultRow]:
    rows: list[ResultRow] = []
    ours = carried[PrefillPolicy.SLACK]
    for how in (PrefillPolicy.APART, PrefillPolicy.BY_LENGTH):
        for name, pick in (("best", max), ("worst", min)):
            metric = f"P/D, {what}: capacity at the {name} of {len(DIVISIONS)} divisions: slack ÷ {NAMES[how]}"
            rows.append(ratio_row(metric, "requests/s", pick(ours), NAMES[how], pick(carried[how]), None))
    return rows
