"""Savings and solving time of the accelerator mix, and the value of the prefill/decode ratio.

    python -m fairlead_bench mix [--out out/bench/mix.json] [--seed 1] [--only mix|roles] [--jobs N]

The mix is compared with the best fleet of one kind and with Mélange's slices.
The ratio is measured after a shift of the traffic.

A run takes four to five minutes of a core, shared by ``--jobs`` processes (by default as many as
there are cores). The figures do not depend on their number.

The rows of prefill and decode after the traffic turned (``flip``), and of decode engines that
take prompts (``convertible``).

Every number comes of a call by itself, so that they can be worked out side by side (``each``).

Prefill on decode engines with slack: eight engines, under short and long prompts.

One fleet gets one traffic in four ways:

- Every prompt goes to a prefill engine, as in the fixed division of the traffic shift.
- Prompts under the gateway's token limit stay on the engine that answers.
- The gateway decides by slack.
- There is no division: eight engines do both.

Attainment is at one rate. Capacity is the highest rate at which 99 % meet both SLOs.

Sixteen engines with separate prefill and decode: a shift from long prompts to long answers.

The simulator's engines are those of `large_profile` in both roles, under the production core.
The core may have 16 replicas in all: an engine that one role releases starts for the other and is
ready ten seconds later. Decode engines compute the prompts that the gateway leaves to them. The
baselines are fixed divisions, and engines that only do what their role says.

Fleets of several kinds of accelerator behind the gateway's router, engine by engine.

The router does not know the lengths of answers. Engines are token-level ones with their caches; the
requests share nothing.
"""

import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product, repeat
from multiprocessing import get_context
from pathlib import Path

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Instance, Model, Role, SloTargets
from fairlead.request_shapes import RequestShapeGrid
from fairlead_autoscaler.core import ScalingCore
from fairlead_autoscaler.mix import AcceleratorMix, MixSettings, PoolCandidate, solve_mix
from fairlead_autoscaler.mix.milp import solve_milp
from fairlead_bench.mix.throughput_tables import (
    ITL_SECONDS,
    WORKLOADS,
    dense,
    histogram,
    homogeneous,
    objectives,
    price_lists,
    skewed,
    tabled_throughput,
    throughput_at_knee,
    traffic,
)
from fairlead_bench.results import NO_GOALS, Goals, MapFunction, ResultRow, load_goals, parse_options, write_results
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.reference_pools import (
    PATIENCE_SECONDS,
    WARM_START,
    large_profile,
    reference_model,
    reference_pool,
)
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.routing import PrefillPolicy
from fairlead_sim.experiments.trial import search_capacity
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.results import without_warmup
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TraceRequest, at_rate

SLACK_ENGINES = 8
TTFT_SECONDS, PD_ITL_SECONDS = 2.0, 0.1
SECONDS = 180.0
RATE = 16.0
"""Requests per second at which attainment is compared."""
MIXED_DIVISIONS = (3, 4, 5, 6)
LONG_SHARE = 0.25
KEPT_SHARE = 0.99
_RATES = (4.0, 32.0)
_STEP = 1.0
NAMES: Mapping[PrefillPolicy, str] = {
    PrefillPolicy.APART: "always handed over",
    PrefillPolicy.BY_LENGTH: "handed over by length",
    PrefillPolicy.SLACK: "decided from slack",
}

ENGINES = 16
STARTUP_SECONDS = WARM_START.min_seconds

TrafficPart = tuple[tuple[int, int], float, float]
"""A shape (prompt and answer tokens), its requests per second, and for how many seconds."""

SEEDS = 5
QUIET_SECONDS = 8_000
"""Requests of each kind below saturation, to see the turn."""
LOAD = 0.85

FULL = (20_000, 60_000)
"""Requests of each kind at saturation, to see what is finished: half an hour, and an hour and a
quarter."""
CROWDED_DIVISIONS = 1.3
"""Times what the best division carries, as where what one carries is measured."""

BLOCK_TOKENS = 128
_SECRET = b"mix"

RESULTS = Path(__file__).parents[2] / "results" / "mix.json"
ROW_GROUPS = MIX, ROLES = "mix", "roles"
OF_ROLES = "P/D"
"""The prefix of metrics about prefill and decode."""
GRID = RequestShapeGrid()
RATES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
SLICES = 4
SLICED_SECONDS = 30.0
SLICED_RATES = (8.0, 64.0)
SKEWED_SEEDS = 4
DENSE = 50

ROUTED = "by shape", "all kinds alike", "one kind"

_STATIC = MixSettings(change_share=0.0)
"""A mix from scratch: nothing runs, so nothing is charged for changing."""


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
    split = (
        ((Role.SERVE, SLACK_ENGINES),)
        if prefill is None
        else ((Role.PREFILL, prefill), (Role.DECODE, SLACK_ENGINES - prefill))
    )
    pools = [
        reference_pool(large_profile(), count, role=role, name=role.value.lower(), startup=WARM_START)
        for role, count in split
    ]
    facts = reference_model(pools, TTFT_SECONDS, PD_ITL_SECONDS)
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


def disaggregated_attainment(prefill: int | None, computing: PrefillPolicy, seed: int) -> float:
    return serve(RATE, prefill, computing, seed).attainment


def convertible_rows(seed: int, bars: Goals, each: MapFunction) -> list[ResultRow]:
    """Yields attainment of each division at one rate.

    Capacities of each way at its best and its worst division follow; none has a goal.
    """
    rows: list[ResultRow] = []
    what = f"{SLACK_ENGINES} engines, short and long prompts"
    calls = [*product(MIXED_DIVISIONS, PrefillPolicy), (None, PrefillPolicy.APART)]
    prefills, ways = zip(*calls, strict=True)
    shares, most = (each(call, prefills, ways, repeat(seed)) for call in (disaggregated_attainment, capacity))
    share, carried = (dict(zip(calls, found, strict=True)) for found in (shares, most))
    for prefill in MIXED_DIVISIONS:
        for how in (PrefillPolicy.APART, PrefillPolicy.BY_LENGTH):
            metric = f"P/D, {what}: within the objectives at {RATE:.0f}/s, {prefill} prefill: slack ÷ {NAMES[how]}"
            slack, other = share[prefill, PrefillPolicy.SLACK], share[prefill, how]
            rows.append(bars.ratio(metric, "share", slack, NAMES[how], other))
    metric = f"P/D, {what}: within the objectives at {RATE:.0f}/s, each engine does both"
    rows.append(bars.value(metric, "share", share[None, PrefillPolicy.APART]))
    rows += _capacities(what, {how: [carried[prefill, how] for prefill in MIXED_DIVISIONS] for how in PrefillPolicy})
    metric = f"P/D, {what}: capacity at the best division: slack ÷ each engine does both"
    best = max(carried[prefill, PrefillPolicy.SLACK] for prefill in MIXED_DIVISIONS)
    rows.append(bars.ratio(metric, "requests/s", best, "each engine does both", carried[None, PrefillPolicy.APART]))
    return rows


def _capacities(what: str, carried: Mapping[PrefillPolicy, Sequence[float]]) -> list[ResultRow]:
    rows: list[ResultRow] = []
    ours = carried[PrefillPolicy.SLACK]
    for how in (PrefillPolicy.APART, PrefillPolicy.BY_LENGTH):
        for name, pick in (("best", max), ("worst", min)):
            metric = f"P/D, {what}: capacity at the {name} of {len(MIXED_DIVISIONS)} divisions: slack ÷ {NAMES[how]}"
            rows.append(NO_GOALS.ratio(metric, "requests/s", pick(ours), NAMES[how], pick(carried[how])))
    return rows


LONG, SHORT_PROMPTS = (8_000, 100), (1_000, 800)
OPTIMUM_SHARE = {LONG: 14, SHORT_PROMPTS: 6}
"""Engines that prefill in the division that carries most of each kind, where each does what its
role says."""
SATURATED = {LONG: 17.2, SHORT_PROMPTS: 57.0}
"""Requests per second that it carries, about."""


def shift_scenario(
    parts: Sequence[TrafficPart],
    prefill: int,
    seed: int,
    *,
    patience: float = PATIENCE_SECONDS,
    computing: PrefillPolicy = PrefillPolicy.SLACK,
) -> AutoscalingScenario:
    """Returns Poisson arrivals, one kind after the other, with time to finish the rest."""
    draw = random.Random(seed)
    arrivals: list[float] = []
    prompts: list[int] = []
    outputs: list[int] = []
    begin = 0.0
    for (prompt, output), rate, seconds in parts:
        at = begin
        while (at := at + draw.expovariate(rate)) < begin + seconds:
            arrivals.append(at)
            prompts.append(prompt)
            outputs.append(output)
        begin += seconds
    pools = [
        reference_pool(large_profile(), count, role=role, name=role.value.lower(), startup=WARM_START)
        for role, count in ((Role.PREFILL, prefill), (Role.DECODE, ENGINES - prefill))
    ]
    facts = replace(reference_model(pools, TTFT_SECONDS, PD_ITL_SECONDS, patience=patience), replicas_most=ENGINES)
    return AutoscalingScenario(
        "flip", seed, begin, facts, tuple(pools), ArrivalTrace(arrivals, prompts, outputs), prefill_policy=computing
    )


def balanced_controller(made: AutoscalingScenario) -> ControllerOutcome:
    return run_controller(made, ScalingCore(made.model))


def fixed_controller(made: AutoscalingScenario) -> ControllerOutcome:
    return run_controller(made, ScheduleController([]))


def run_shift(
    load: float,
    requests: int,
    prefill: int,
    seed: int,
    *,
    patience: float = PATIENCE_SECONDS,
    computing: PrefillPolicy = PrefillPolicy.SLACK,
) -> tuple[AutoscalingScenario, float]:
    """Returns equally many requests of both kinds, and the time at which the second kind begins.

    They arrive at ``load`` times the rate that the best division of each carries.
    """
    long, chatty = ((shape, load * SATURATED[shape], requests / (load * SATURATED[shape])) for shape in OPTIMUM_SHARE)
    return shift_scenario([long, chatty], prefill, seed, patience=patience, computing=computing), long[2]


def throughput(outcome: ControllerOutcome, begin: float = 0.0) -> float:
    """Returns the requests per second of those that arrived from ``begin`` on."""
    ends = [
        end - begin
        for arrival, end in zip(outcome.request_table.arrival, outcome.request_table.end, strict=True)
        if arrival >= begin
    ]
    return len(ends) / max(ends)


def settling_seconds(outcome: ControllerOutcome, begin: float, best: int, within: int = 1) -> float | None:
    """Returns the seconds from ``begin`` until the ready engines are near a division.

    The division has ``best`` of 16 for prefill. The engines must stay that near for two
    minutes; None if they never do. Where fewer than 16 are desired, the ratios are compared.
    """
    looks = [
        (look.now, abs(ENGINES * look.ready[0] / sum(look.ready) - best) <= within)
        for look in outcome.samples
        if look.now >= begin
    ]
    for at, _ in looks:
        if all(near for now, near in looks if at <= now <= at + 120.0):
            return at - begin
    return None


def saturated_throughput(
    prefill: int,
    shape: tuple[int, int],
    seed: int,
    *,
    begin: float = 100.0,
    end: float = 400.0,
    computing: PrefillPolicy = PrefillPolicy.APART,
) -> float:
    """Requests per second that a division finishes between ``begin`` and ``end`` seconds, when more
    arrive all the time than it can."""
    made = shift_scenario([(shape, 1.3 * SATURATED[shape], end)], prefill, seed, patience=1e9, computing=computing)
    ends = run_controller(made, ScheduleController([])).request_table.end
    return sum([begin < at <= end for at in ends]) / (end - begin)


DIVISIONS = {shape: (8, *range(best - 1, best + 2)) for shape, best in OPTIMUM_SHARE.items()}
SLACK_DIVISIONS = {LONG: (8, 11, 12, 13, 14), SHORT_PROMPTS: (8, 3, 4, 5, 6)}
"""Divisions among which the best one is searched, 1:1 first, and those for decode engines that take
prompts."""


def measure_shift(seed: int, computing: PrefillPolicy) -> tuple[float, int, float]:
    """Measures a shift under the core: seconds, requests and the share within the SLOs.

    The seconds count until the ratio is within one engine of the best division. The requests are
    the lost and the abandoned ones.
    """
    made, turned = run_shift(LOAD, QUIET_SECONDS, OPTIMUM_SHARE[LONG], seed, computing=computing)
    calm = balanced_controller(made)
    near = settling_seconds(calm, turned, OPTIMUM_SHARE[SHORT_PROMPTS])
    return math.inf if near is None else near, calm.abandoned + calm.lost, calm.attainment


def run_halved(seed: int, computing: PrefillPolicy) -> float:
    return fixed_controller(run_shift(LOAD, QUIET_SECONDS, ENGINES // 2, seed, computing=computing)[0]).attainment


def shift_rows(seed: int, bars: Goals, each: MapFunction) -> list[ResultRow]:
    """Returns rows on the speed of the division and the requests that wait for it; the worst of
    several seeds."""
    seeds = range(seed, seed + SEEDS)
    slack, apart = (each(measure_shift, seeds, repeat(how)) for how in (PrefillPolicy.SLACK, PrefillPolicy.APART))
    halves = each(run_halved, repeat(seed), (PrefillPolicy.SLACK, PrefillPolicy.APART))
    nears, lost, kept = zip(*slack, strict=True)
    plain = [share for _, _, share in apart]
    metric = "P/D: until within one engine of the best division, less a start"
    rows = [bars.value(metric, "s", max(nears) - STARTUP_SECONDS)]
    rows.append(bars.value("P/D: requests whose prefill timed out", "requests", float(sum(lost))))
    metric = "P/D: within the objectives, the turn included, at 85 %"
    rows.append(bars.ratio(metric, "share", min(kept), "every prompt handed over", min(plain)))
    metric = "P/D: within the objectives, the same divided 1:1, convertible decoders"
    rows.append(bars.ratio(metric, "share", next(halves), "every prompt handed over", next(halves)))
    return rows


def capacity_of(count: int, shape: tuple[int, int], seed: int, computing: PrefillPolicy) -> float:
    """Requests per second that a division with so many engines for prefill finishes of one kind."""
    return saturated_throughput(count, shape, seed, computing=computing)


def division_rows(seed: int, bars: Goals, each: MapFunction) -> list[ResultRow]:
    """Returns rows on the capacity of divisions, for each kind of traffic."""
    rows: list[ResultRow] = []
    shapes = ((LONG, "8k in, 100 out"), (SHORT_PROMPTS, "1k in, 800 out"))
    plain, slack = (
        [each(capacity_of, counts[shape], repeat(shape), repeat(seed), repeat(how)) for shape, _ in shapes]
        for counts, how in ((DIVISIONS, PrefillPolicy.APART), (SLACK_DIVISIONS, PrefillPolicy.SLACK))
    )
    for (shape, name), without, with_slack in zip(shapes, plain, slack, strict=True):
        split = dict(zip(DIVISIONS[shape], without, strict=True))
        best = max(split, key=lambda count: split[count])
        rows.append(bars.value(f"P/D: engines that prefill in the best division, {name}", "engines", float(best)))
        metric = f"P/D: throughput of the best division ÷ 1:1, {name}"
        rows.append(bars.ratio(metric, "requests/s", split[best], "1:1", split[8]))
        most = dict(zip(SLACK_DIVISIONS[shape], with_slack, strict=True))
        best = max(most, key=lambda count: most[count])
        metric = f"P/D: with convertible decoders, engines that prefill in the best division, {name}"
        rows.append(bars.value(metric, "engines", float(best)))
        metric = f"P/D: throughput of the best division, {name}: convertible decoders ÷ without"
        rows.append(bars.ratio(metric, "requests/s", most[best], "without", max(split.values())))
        metric = f"P/D: throughput of 1:1, {name}: convertible decoders ÷ without"
        rows.append(bars.ratio(metric, "requests/s", most[8], "without", split[8]))
    return rows


def finished_share(load: float, requests: int, prefill: int | None, seed: int, computing: PrefillPolicy) -> float:
    """Requests per second over the turn, divided as that says to the end, or by the core (None)."""
    began = OPTIMUM_SHARE[LONG] if prefill is None else prefill
    made = run_shift(load, requests, began, seed, patience=1e9, computing=computing)[0]
    made = replace(made, seconds=3.0 * made.seconds)  # to the end of what is left
    return throughput(balanced_controller(made) if prefill is None else fixed_controller(made))


def full_rows(seed: int, bars: Goals, each: MapFunction) -> list[ResultRow]:
    """Returns rows on finished requests over the shift at saturation. The goal compares with
    engines that keep to their role."""
    cases = [(1.0, requests) for requests in FULL] + [(CROWDED_DIVISIONS, FULL[0])]
    both = (PrefillPolicy.SLACK, PrefillPolicy.APART)
    calls = [(*case, prefill, how) for case in cases for prefill in (None, ENGINES // 2) for how in both]
    loads, requests, prefills, ways = zip(*calls, strict=True)
    found = dict(zip(calls, each(finished_share, loads, requests, prefills, repeat(seed), ways), strict=True))
    rows: list[ResultRow] = []
    for load, count in cases:
        what = f"P/D: throughput over the turn, {count} requests of each kind"
        if load != 1.0:
            what += f" at {load} times the rate"
        ours = {how: found[load, count, None, how] for how in both}
        halves = {how: found[load, count, ENGINES // 2, how] for how in both}
        base, metric = halves[PrefillPolicy.APART], f"{what}: balanced ÷ 1:1"
        rows.append(bars.ratio(metric, "requests/s", ours[PrefillPolicy.SLACK], "1:1", base))
        metric = f"{what}: balanced, every prompt handed over ÷ 1:1"
        rows.append(bars.ratio(metric, "requests/s", ours[PrefillPolicy.APART], "1:1", base))
        metric = f"{what}: balanced ÷ 1:1, convertible decoders in both"
        rows.append(bars.ratio(metric, "requests/s", ours[PrefillPolicy.SLACK], "1:1", halves[PrefillPolicy.SLACK]))
    return rows


ROLE_ROWS: tuple[Callable[[int, Goals, MapFunction], list[ResultRow]], ...] = (
    shift_rows,
    division_rows,
    full_rows,
    convertible_rows,
)
"""Whatever there is of them, in the order of the table."""


class UnknownLengthRouter(SingleGateway):
    """As of clients that do not say how long an answer may be."""

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        return super().route(replace(request, output_tokens=0), now)


def slo_attainment(
    fleet: Mapping[str, tuple[EngineProfile, int]],
    requests: Sequence[TraceRequest],
    objectives: SloTargets,
    *,
    apart: bool,
    seed: int,
) -> float:
    """Returns the share within the SLO of ``fleet`` (profile and replicas by accelerator).

    apart: each accelerator is a pool of its own, as in a manifest. Otherwise all are one pool, and
    the router does not go by shape.
    """
    ones = [
        Instance(f"{name}-{number}/0/0", NAMESPACE, MODEL, name if apart else "all", "", profile=profile)
        for name, (profile, count) in sorted(fleet.items())
        for number in range(count)
    ]
    model = Model(NAMESPACE, MODEL, objectives)
    router = ModelRouter(secret=_SECRET, seed=seed)
    router.update(model, ones)
    prompts = TracePromptCache(BLOCK_TOKENS, secret=_SECRET, seed=model.key.encode())
    profiles = {one.id: one.profile for one in ones if one.profile is not None}
    first = next(iter(profiles.values()))
    front = UnknownLengthRouter(router, prompts.prefix_chain, {}, model, first)
    options = FleetOptions(list(profiles), first, BLOCK_TOKENS, profiles)
    course = FleetSimulation(front, options, prompts=prompts)
    served = without_warmup(course.run(requests))
    return sum([_meets_slo(one, objectives) for one in served]) / len(served)


def _meets_slo(one: RequestResult, objectives: SloTargets) -> bool:
    limit, itl = objectives.ttft_limit_seconds(one.prompt_tokens), objectives.itl_seconds
    if one.error is not None or one.ttft_seconds is None:
        return False
    late = limit is not None and one.ttft_seconds > limit
    return not late and (itl is None or (one.tpot_seconds or 0.0) <= itl)


ROUTED_PRICES, ROUTED_ITL, ROUTED_RATE, ROUTED_REQUESTS = "hyperscalers", 0.12, 16.0, 3_000
ROUTED_SKEWED, ROUTED_FLEET = "80 % short chat, 20 % documents", {"L4": 8, "H100-80GB": 1}
"""Fleets that are served: of which table, at how many requests a second, and how many."""


@dataclass(frozen=True, slots=True)
class MixProblem:
    """Requests per second of each shape and the types that may serve them, in a ``group`` of
    problems alike; to be solved with ``slices``, too?"""

    group: str
    rates: Sequence[float]
    types: Sequence[PoolCandidate]
    slices: bool = False


@dataclass(frozen=True, slots=True)
class MixCase:
    """One problem and what came of it. ``sliced`` is the cost with slices; None where not tried."""

    mix: AcceleratorMix
    seconds: float
    single: float
    sliced: float | None = None


def solve(rates: Sequence[float], types: Sequence[PoolCandidate]) -> MixCase:
    """Solves one problem by all methods but slices."""
    began = time.perf_counter()
    mix = solve_mix(rates, types, _STATIC)
    seconds = time.perf_counter() - began
    return MixCase(mix, seconds, homogeneous(rates, types))


def solve_sliced(rates: Sequence[float], types: Sequence[PoolCandidate]) -> float:
    """Returns the cost in slices."""
    found = solve_milp(rates, types, replace(_STATIC, solve_seconds=SLICED_SECONDS), slices=SLICES)
    assert found.replicas is not None
    return sum([count * one.cost_per_hour for count, one in zip(found.replicas, types, strict=True)])


def problems(seed: int) -> Iterator[MixProblem]:
    """Returns the problems of all prices, SLOs and traffics."""
    for prices, priced in price_lists().items():
        for itl_seconds in ITL_SECONDS:
            kept_to = objectives(itl_seconds)
            tables = {
                "": tabled_throughput(priced, kept_to),
                ", by the knee": throughput_at_knee(priced, GRID, kept_to),
            }
            for how, types in tables.items():
                group = f"{prices}, {itl_seconds * 1e3:.0f} ms"
                for rate in RATES:
                    slices = rate in SLICED_RATES and not how
                    alike = [rate / GRID.size] * GRID.size
                    yield MixProblem(f"{group}, all shapes alike{how}", alike, types, slices)
                    for workload in WORKLOADS:
                        rates = [rate * share for share in histogram(workload, GRID, seed)]
                        yield MixProblem(f"{group}, six traffics{how}", rates, types, slices)
    for table in range(SKEWED_SEEDS):
        types = skewed(GRID, seed + table)
        for workload in WORKLOADS:
            shares = histogram(workload, GRID, seed)
            for rate in RATES:
                yield MixProblem("skewed", [rate * share for share in shares], types, rate in SLICED_RATES)
    draw = random.Random(seed)
    for _ in range(DENSE):
        yield MixProblem("dense", *dense(GRID, draw))


def mean(values: Sequence[float]) -> float:
    return math.exp(sum([math.log(value) for value in values]) / len(values))


def mix_rows(found: Sequence[tuple[MixProblem, MixCase]], bars: Goals, each: MapFunction) -> list[ResultRow]:
    """Yields the rows of problems solved by all methods but slices, those with goals first."""
    wanted = [problem for problem, _ in found if problem.slices]
    costs = iter(each(solve_sliced, [problem.rates for problem in wanted], [problem.types for problem in wanted]))
    groups: dict[str, list[MixCase]] = {}
    for problem, case in found:
        if problem.slices:
            case = replace(case, sliced=next(costs))
        groups.setdefault(problem.group, []).append(case)
    every = [case for group in groups.values() for case in group]
    slowest = max(case.seconds for case in every)
    rows = [bars.value("solving 10 × 10 shapes × 6 accelerators, the slowest", "s", slowest)]
    with_slices = [case for case in every if case.sliced is not None]
    worst = max(with_slices, key=lambda case: case.mix.cost_per_hour / (case.sliced or math.inf))
    metric = "cost ÷ binary optimum of 4 slices, the worst"
    rows.append(
        bars.ratio(metric, "USD/h", round(worst.mix.cost_per_hour, 6), "4 slices", round(worst.sliced or 0.0, 6))
    )
    for name, group in groups.items():
        if name == "dense":
            continue
        metric = f"cost ÷ best fleet of one kind, {name}"
        spent, single = mean([case.mix.cost_per_hour for case in group]), mean([case.single for case in group])
        rows.append(bars.ratio(metric, "USD/h", spent, "best of one kind", single))
    return rows


def run_routed(workload: str, how: str, seed: int) -> tuple[str, float]:
    """Returns a fleet sized for a traffic, as text, and its share within the SLO.

    The fleet runs behind the gateway's router.
    """
    priced, wanted = price_lists()[ROUTED_PRICES], objectives(ROUTED_ITL)
    types = tabled_throughput(priced, wanted)
    rates = [ROUTED_RATE * share for share in histogram(workload, GRID, seed)]
    fleet = best_single(rates, types)
    if how != "one kind":
        fleet = {name: count for name, count in solve_mix(rates, types, _STATIC).replicas.items() if count}
    requests = traffic(workload, ROUTED_RATE, ROUTED_REQUESTS, seed)
    profiles = {one.profile.name: one.profile for one in priced}
    ones = {name: (profiles[name], count) for name, count in fleet.items()}
    named = ", ".join([f"{count} x {name}" for name, count in fleet.items()])
    return named, slo_attainment(ones, requests, wanted, apart=how == "by shape", seed=seed)


def routed_capacity(apart: bool, seed: int) -> float:
    """Requests per second that an unlike fleet carries at 99 %, divided by shape or not."""
    profiles = {one.profile.name: one.profile for one in price_lists()[ROUTED_PRICES]}
    requests = traffic(ROUTED_SKEWED, 1.0, ROUTED_REQUESTS, seed)
    fleet = {name: (profiles[name], count) for name, count in ROUTED_FLEET.items()}
    wanted = objectives(ROUTED_ITL)
    return search_capacity(
        lambda rate: slo_attainment(fleet, at_rate(requests, rate), wanted, apart=apart, seed=seed) >= 0.99, 10.0
    )


def routed_rows(seed: int, bars: Goals, each: MapFunction) -> list[ResultRow]:
    """Fleets as they were sized, under the traffic that they were sized for: simulated engines
    behind the gateway's own router."""
    rows: list[ResultRow] = []
    shares: dict[str, list[float]] = {how: [] for how in ROUTED}
    pairs = [(workload, how) for workload in WORKLOADS for how in ROUTED]
    found = each(run_routed, [workload for workload, _ in pairs], [how for _, how in pairs], repeat(seed))
    both = each(routed_capacity, (True, False), repeat(seed))
    for (workload, how), (named, share) in zip(pairs, found, strict=True):
        shares[how].append(share)
        rows.append(bars.value(f"routed, {workload}, {how} ({named}): within the objectives", "share", share))
    for how, values in shares.items():
        rows.append(bars.value(f"routed, six traffics, {how}: within the objectives, the least", "share", min(values)))
    by_shape, alike = both
    metric = "routed, 8 x L4 and 1 x H100, a fifth documents: carried at 99 % by shape ÷ all kinds alike"
    rows.append(bars.ratio(metric, "requests/s", by_shape, "all kinds alike", alike))
    return rows


def best_single(rates: Sequence[float], types: Sequence[PoolCandidate]) -> dict[str, int]:
    """Returns the cheapest fleet of one type that serves all shapes."""
    found = {
        one.name: math.ceil(
            sum([rate / each for rate, each in zip(rates, one.throughput, strict=True) if rate > 0.0]) - 1e-9
        )
        for one in types
        if all(each > 0.0 for rate, each in zip(rates, one.throughput, strict=True) if rate > 0.0)
    }
    costs = {one.name: one.cost_per_hour for one in types}
    best = min(found, key=lambda name: found[name] * costs[name])
    return {best: found[best]}


def measure(seed: int, only: Sequence[str], jobs: int) -> list[ResultRow]:
    """Returns the rows of one part or of both.

    Solving times are measured while nothing else runs; the rest runs on several processes.
    """
    bars = load_goals("mix")
    solutions = (
        [] if MIX not in only else [(problem, solve(problem.rates, problem.types)) for problem in problems(seed)]
    )
    # Processes that fork from one with threads may inherit a lock that stays taken.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as processes, ThreadPoolExecutor() as threads:
        each = processes.map
        parts: list[Future[list[ResultRow]]] = []
        if ROLES in only:
            parts += [threads.submit(part, seed, bars, each) for part in ROLE_ROWS]
        if MIX in only:
            of_mix = (
                threads.submit(mix_rows, solutions, bars, each),
                threads.submit(routed_rows, seed, bars, each),
            )
            parts = [*of_mix, *parts]
        return [row for part in parts for row in part.result()]


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when every goal holds."""
    asked = parse_options(
        "mix",
        __doc__,
        arguments,
        seed=1,
        only=(list(ROW_GROUPS), "one part; the other's rows are those of bench/results/mix.json"),
        jobs=(os.cpu_count() or 1, "processes; all cores by default"),
    )
    rows = measure(asked.seed, asked.only, asked.jobs)
    if len(asked.only) == 1:
        before = [ResultRow(**row) for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]]
        other = [row for row in before if row.metric.startswith(OF_ROLES) == (MIX in asked.only)]
        rows = [*rows, *other] if MIX in asked.only else [*other, *rows]
    return write_results("mix", rows, seed=asked.seed, file=asked.out)
