"""Savings and solving time of the accelerator mix, and the value of the prefill/decode ratio.

    python -m fairlead_bench mix [--out out/bench/mix.json] [--seed 1] [--only mix|roles] [--jobs N]

The mix is compared with the best fleet of one kind and with Mélange's slices.
The ratio is measured after a shift of the traffic.

A run takes four to five minutes of a core, shared by ``--jobs`` processes (by default as many as
there are cores). The figures do not depend on their number.

Fleets of several kinds of accelerator behind the gateway's router, engine by engine.

The router does not know the lengths of answers. Engines are token-level ones with their caches; the
requests share nothing.
"""

import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Instance, Model, SloTargets
from fairlead.request_shapes import RequestShapeGrid
from fairlead_autoscaler.mix import (
    AcceleratorMix,
    MixSettings,
    PoolCandidate,
    solve_mix,
)
from fairlead_autoscaler.mix.milp import solve_milp
from fairlead_bench.mix.prefill_decode_rows import ROLE_ROWS
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
from fairlead_bench.results import Goals, MapFunction, ResultRow, load_goals, parse_options, write_results
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.experiments.trial import search_capacity
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.results import without_warmup
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TraceRequest, at_rate

BLOCK_TOKENS = 128
_SECRET = b"mix"


class UnknownLengthRouter(SingleGateway):
    """As of clients that do not say how long an answer may be."""

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Routes without the length of the answer."""
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
ROUTED_PRICES, ROUTED_ITL, ROUTED_RATE, ROUTED_REQUESTS = "hyperscalers", 0.12, 16.0, 3_000
ROUTED = "by shape", "all kinds alike", "one kind"
ROUTED_SKEWED, ROUTED_FLEET = "80 % short chat, 20 % documents", {"L4": 8, "H100-80GB": 1}
"""Fleets that are served: of which table, at how many requests a second, and how many."""
_STATIC = MixSettings(change_share=0.0)
"""A mix from scratch: nothing runs, so nothing is charged for changing."""


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
    """Returns the geometric mean."""
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
    solutions = [] if MIX not in only else [(one, solve(one.rates, one.types)) for one in problems(seed)]
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
