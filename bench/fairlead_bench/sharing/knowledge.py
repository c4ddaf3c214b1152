"""The worth of knowing engines' caches: equal requests without the index, with it, and with perfect
knowledge.

    python -m fairlead_bench knowledge [--scenarios A,B] [--requests 3000] [--seeds 5]
                                       [--out out/bench/knowledge.json]

Gateways without an index keep all that works without it: their own records, cached tokens of
answers, and a Redis. Each row is a ratio to them, paired by seed. Its
interval is Student's t at 95 % over the seeds. No data is sent and no time is read, so equal
arguments give equal rows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import chain, product
from random import Random
from statistics import fmean, stdev
from typing import Final

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import KvPullSource, SloTargets
from fairlead_bench.judging_seeds import TUNING_SEEDS
from fairlead_bench.results import NO_GOALS, ResultRow, parse_options, write_results
from fairlead_bench.sharing.knowledge_scenarios import (
    AGENT_ANSWER_TOKENS,
    AGENT_INSTRUCTION_TOKENS,
    AGENT_QUESTION_TOKENS,
    AGENT_TURNS,
    ENGINES,
    LOADS,
    OBJECTIVE_SECONDS,
    PROFILE,
    PULL_LATENCY_SECONDS,
    REQUESTS,
    SCENARIOS,
    SEEDS,
    WARM_UP_SHARE,
    WORKING_SETS,
    Disturbance,
)
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.lower_tiers import TierOptions, with_load_prices
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.experiments.trial import search_capacity
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation, SimulationContext
from fairlead_sim.gateways.gateway_cluster import NO_SHARING, ClusterOptions, GatewayCluster, SharingOptions
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.generators import AgentShape, agent_sessions, conversation_traffic
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest, at_rate

_NAME = "knowledge"
_STUDENT_T: Final = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""The 97.5 % quantile by the number of seeds."""
_MIN_BLOCKS: Final = 96
"""An engine has room for the longest prompt."""
_CALIBRATION_RATE: Final = 8.0
_CALIBRATION_SESSIONS: Final = 32
_FAILED_SECONDS: Final = 120.0
"""A request that fails counts as one whose first token came so late."""


class Knowledge(StrEnum):
    """The knowledge of the caches that a gateway has besides its own records.

    ``BLIND`` is only for slower memory: what lies there counts as if it were in the GPU's.
    """

    NONE = "no index"
    BLIND = "index without prices"
    INDEX = "index"
    PERFECT = "perfect knowledge"


@dataclass(frozen=True, slots=True)
class Cell:
    """One severity of a scenario, with a working set and a load.

    rate: requests per second, or sessions at a time.
    """

    scenario: str
    severity: str
    disturbance: Disturbance
    working_set: float
    load: float
    rate: float

    @property
    def arms(self) -> list[Knowledge]:
        has_tiers = self.disturbance.cpu_memory or self.disturbance.store_memory
        return [arm for arm in Knowledge if has_tiers or arm is not Knowledge.BLIND]

    @property
    def label(self) -> str:
        return f"{self.scenario}: {self.severity}, working set {self.working_set:g}, load {self.load:g}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of one run over the requests that count.

    cached_tokens: prompt tokens that were found in caches.
    recomputed_tokens: prompt tokens that some engine computed once more: an endless cache of all
        engines would have held them.
    goodput: share of the requests whose first token came in time.
    """

    cached_tokens: int
    recomputed_tokens: int
    p50_seconds: float
    p90_seconds: float
    goodput: float
    failures: int


class DisturbedFront:
    """A cluster of gateways whose memory of the caches is disturbed."""

    def __init__(self, cluster: GatewayCluster, disturbance: Disturbance, seed: int) -> None:
        self._cluster = cluster
        self._disturbance = disturbance
        self._random = Random(f"disturbance {seed}")
        self._past: set[str] = set()
        self._routed: set[str] = set()
        self.simulation: FleetSimulation | None = None

    def start(self, simulation: SimulationContext) -> None:
        self._cluster.start(simulation)

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        if request.id not in self._routed:  # a request that is routed again disturbs nothing
            self._routed.add(request.id)
            self._disturb(request, now)
        if request.id in self._past:
            return self._random.choice(list(self._cluster.live)), ""
        return self._cluster.route(request, now)

    def _disturb(self, request: TraceRequest, now: float) -> None:
        assert self.simulation is not None
        disturbance, number = self._disturbance, len(self._routed)
        if disturbance.reset_every and number % disturbance.reset_every == 0:
            engine = number // disturbance.reset_every % ENGINES
            self.simulation.reset_engine(self._cluster.fleet.engine_names[engine], now)
        if disturbance.restart_every and number % disturbance.restart_every == 0:
            self._cluster.restart_gateway(number // disturbance.restart_every % disturbance.gateways, now)
        if self._random.random() < disturbance.bypassing_share:
            self._past.add(request.id)

    def on_rejected(self, request: str, now: float) -> None:
        if request not in self._past:
            self._cluster.on_rejected(request, now)

    def on_first_token(self, request: str, now: float) -> None:
        if request not in self._past:
            self._cluster.on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        if sequence.id not in self._past:
            self._cluster.on_finished(sequence, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        self._cluster.on_kv_events(instance, events, now)

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        self._cluster.on_membership(live_engines, now)

    def on_lost(self, request: str, now: float) -> None:
        if request not in self._past:
            self._cluster.on_lost(request, now)


def sharing(disturbance: Disturbance, knowledge: Knowledge) -> SharingOptions:
    """Returns what gateways know in one arm."""
    base = SharingOptions() if disturbance.is_shared else NO_SHARING
    if knowledge is Knowledge.PERFECT:
        return replace(base, sent=False, perfect=True)
    return replace(base, index=knowledge is not Knowledge.NONE)


def simulate(cell: Cell, requests: int, knowledge: Knowledge, seed: int) -> Outcome:
    """Returns the figures of one run."""
    disturbance = cell.disturbance
    sessions = _agents(requests, seed) if disturbance.agent_pause_seconds else None
    traffic = conversation_traffic(requests, seed=seed) if sessions is None else [*chain.from_iterable(sessions)]
    blocks = max(_MIN_BLOCKS, int(_different_blocks(traffic) / cell.working_set / ENGINES))
    profile = replace(builtin_profile(PROFILE), kv_tokens=blocks * TRACE_BLOCK_TOKENS)
    stated = replace(profile, kv_tokens=int(blocks * disturbance.stated_memory) * TRACE_BLOCK_TOKENS)
    tiers = _tiers(disturbance, profile)
    if knowledge is not Knowledge.BLIND:
        stated = with_load_prices(stated, tiers)
    known = sharing(disturbance, knowledge)
    fleet = FleetOptions(
        [f"e-{index}" for index in range(ENGINES)],
        profile,
        TRACE_BLOCK_TOKENS,
        publishes_kv_events=known.index,
        lower_tiers=tiers,
        pull=_pull(disturbance, profile),
    )
    routing = RoutingOptions(SloTargets(ttft_seconds=OBJECTIVE_SECONDS), f"secret {seed}".encode(), seed)
    cluster = GatewayCluster(fleet, routing, ClusterOptions(disturbance.gateways, known, stated_profile=stated))
    front = DisturbedFront(cluster, disturbance, seed)
    front.simulation = simulation = FleetSimulation(front, fleet)
    if sessions is None:
        return _outcome(traffic, simulation.run(at_rate(traffic, cell.rate)))
    results = simulation.run_sessions(
        sessions,
        concurrency=max(1, round(cell.rate)),
        round_trip_seconds=disturbance.agent_pause_seconds,
        seed=seed,
    )
    return _outcome(traffic, results)


def _tiers(disturbance: Disturbance, profile: EngineProfile) -> list[TierOptions]:
    tiers = [
        ("cpu", disturbance.cpu_memory, disturbance.cpu_price or disturbance.load_price),
        ("disk", disturbance.disk_memory, disturbance.load_price),
        ("remote", disturbance.store_memory * ENGINES, disturbance.load_price),
    ]
    return [
        TierOptions(name, int(profile.kv_tokens * size), price * profile.prefill_token_seconds)
        for name, size, price in tiers
        if size
    ]


def _pull(disturbance: Disturbance, profile: EngineProfile) -> KvPullSource | None:
    if not disturbance.pull_price:
        return None
    tokens_per_second = 1.0 / (disturbance.pull_price * profile.prefill_token_seconds)
    return KvPullSource("peer:1", 1.0, tokens_per_second, PULL_LATENCY_SECONDS)


def _agents(requests: int, seed: int) -> list[list[TraceRequest]]:
    shape = AgentShape(
        instruction_tokens=AGENT_INSTRUCTION_TOKENS,
        turns=AGENT_TURNS,
        question_tokens=AGENT_QUESTION_TOKENS,
        answer_tokens=AGENT_ANSWER_TOKENS,
        output_tokens=AGENT_ANSWER_TOKENS,
    )
    return agent_sessions(requests // AGENT_TURNS, seed=seed, shape=shape)


def _different_blocks(traffic: Sequence[TraceRequest]) -> int:
    return len({block for request in traffic for block in request.blocks})


def _outcome(traffic: Sequence[TraceRequest], results: Sequence[RequestResult]) -> Outcome:
    """Returns the figures of the requests after the warm-up, by their order of arrival."""
    order = sorted(range(len(results)), key=lambda index: results[index].arrival)
    first_counted = int(WARM_UP_SHARE * len(results))
    seen: set[int] = set()
    cached = held = 0
    for place, index in enumerate(order):
        request, result = traffic[index], results[index]
        repeated = 0
        for block in request.blocks[: (request.prompt_tokens - 1) // TRACE_BLOCK_TOKENS]:
            if block not in seen:
                break
            repeated += TRACE_BLOCK_TOKENS
        seen.update(request.blocks)
        if place >= first_counted:
            cached += result.cached_tokens
            held += repeated
    counted = [results[index] for index in order[first_counted:]]
    waited = sorted(_FAILED_SECONDS if one.ttft_seconds is None else one.ttft_seconds for one in counted)
    return Outcome(
        cached,
        held - cached,
        waited[len(waited) // 2],
        waited[int(len(waited) * 0.9)],
        fmean([one <= OBJECTIVE_SECONDS for one in waited]),
        sum(one.error is not None for one in counted),
    )


def full_load(requests: int, working_set: float, *, pause_seconds: float) -> float:
    """Returns the highest rate at which the gateway without an index, undisturbed, is in time for
    90 % of the requests. Of agents: the number of sessions at a time.
    """
    undisturbed = Disturbance(agent_pause_seconds=pause_seconds)

    def is_in_time(rate: float) -> bool:
        cell = Cell("", "", undisturbed, working_set, 1.0, rate)
        return simulate(cell, requests, Knowledge.NONE, TUNING_SEEDS[0]).p90_seconds <= OBJECTIVE_SECONDS

    guess = _CALIBRATION_SESSIONS if pause_seconds else _CALIBRATION_RATE
    return search_capacity(is_in_time, guess, tolerance=0.05)


def cells(scenarios: Sequence[str], rates: Mapping[tuple[float, float], float]) -> Iterator[Cell]:
    """Yields every cell of these scenarios.

    rates: the full load, by working set and pause of agents.
    """
    for name in scenarios:
        for severity, disturbance in SCENARIOS[name].items():
            for working_set, load in product(WORKING_SETS, LOADS):
                rate = load * rates[working_set, disturbance.agent_pause_seconds]
                yield Cell(name, severity, disturbance, working_set, load, rate)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A ratio of two arms, as the mean of logarithms over seeds, with its interval."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """The ratio in one word: ``wins`` if it is less by a tenth, ``loses`` if it is more by a
        hundredth, else ``neutral``. Both count beyond the interval only.
        """
        if self.ratio <= 0.9 and self.high < 1.0:
            return "wins"
        return "loses" if self.low > 1.01 else "neutral"


def compare(ratios: Sequence[float]) -> Comparison:
    """Returns the mean ratio and its interval; one ratio per seed."""
    logs = [math.log(ratio) for ratio in ratios]
    middle = fmean(logs)
    half = _STUDENT_T[len(logs)] * stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    return Comparison(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def judge(metric: str, ratios: Sequence[float]) -> tuple[ResultRow, dict[str, object]]:
    """Returns the row of a mean ratio, and its verdict; one ratio per seed."""
    comparison = compare(ratios)
    verdict = {"row": metric, **asdict(comparison), "verdict": comparison.verdict}
    return NO_GOALS.value(metric, "ratio", comparison.ratio), verdict


_MEASURES: Final[Mapping[str, Callable[[Outcome], float]]] = {
    "p90 TTFT": lambda outcome: outcome.p90_seconds,
    "recomputed tokens": lambda outcome: max(1.0, outcome.recomputed_tokens),
}


def rows(
    scenarios: Sequence[str], found: Mapping[Cell, Mapping[Knowledge, Sequence[Outcome]]]
) -> tuple[list[ResultRow], list[dict[str, object]]]:
    """Returns the row and the verdict of each scenario.

    found: outcomes of each seed.
    """
    made: list[ResultRow] = []
    verdicts: list[dict[str, object]] = []
    for name in scenarios:
        members = [cell for cell in found if cell.scenario == name]
        for measure, read in _MEASURES.items():
            for knowledge in members[0].arms[1:]:
                by_seed = [
                    math.exp(fmean([math.log(_ratio(found[cell], knowledge, seed, read)) for cell in members]))
                    for seed in range(len(found[members[0]][knowledge]))
                ]
                row, verdict = judge(f"{name}: {measure}: {knowledge} ÷ no index", by_seed)
                made.append(row)
                verdicts.append(verdict)
    return made, verdicts


def cell_records(found: Mapping[Cell, Mapping[Knowledge, Sequence[Outcome]]]) -> list[dict[str, object]]:
    """Returns the figures of every cell: its rate, and for each arm means over the seeds and the
    verdicts on it.
    """
    records: list[dict[str, object]] = []
    for cell, outcomes in found.items():
        arms: dict[str, object] = {}
        for knowledge, by_seed in outcomes.items():
            means = {name: fmean(one[name] for one in map(asdict, by_seed)) for name in asdict(by_seed[0])}
            figures: dict[str, object] = {name: float(f"{value:.4g}") for name, value in means.items()}
            for measure, read in _MEASURES.items():
                if knowledge is not Knowledge.NONE:
                    ratio = compare([_ratio(outcomes, knowledge, seed, read) for seed in range(len(by_seed))])
                    shown = f"{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f}): {ratio.verdict}"
                    figures[f"{measure} ÷ no index"] = shown
            arms[knowledge] = figures
        records.append({"cell": cell.label, "rate": float(f"{cell.rate:.4g}"), "arms": arms})
    return records


def _ratio(
    outcomes: Mapping[Knowledge, Sequence[Outcome]], knowledge: Knowledge, seed: int, read: Callable[[Outcome], float]
) -> float:
    return read(outcomes[knowledge][seed]) / read(outcomes[Knowledge.NONE][seed])


def main(arguments: list[str]) -> int:
    """Measures, writes and prints."""
    given = parse_options(
        _NAME,
        "Gateways without the index, with it, and with perfect knowledge, in the fleet simulator.",
        arguments,
        scenarios=(list(SCENARIOS), "only these"),
        requests=REQUESTS,
        seeds=len(SEEDS),
    )
    seeds = SEEDS[: given.seeds]
    with ProcessPoolExecutor(max_workers=2) as pool:
        pauses = {
            disturbance.agent_pause_seconds for name in given.scenarios for disturbance in SCENARIOS[name].values()
        }
        keys = list(product(WORKING_SETS, sorted(pauses)))
        loads = pool.map(partial(_full_load, given.requests), keys)
        rates = dict(zip(keys, loads, strict=True))
        print("full load:", {f"{key}": round(rate, 2) for key, rate in rates.items()}, flush=True)
        wanted = list(cells(given.scenarios, rates))
        runs = [(cell, arm, seed) for cell in wanted for arm in cell.arms for seed in seeds]
        outcomes = pool.map(partial(_simulate, given.requests), runs, chunksize=4)
        found: dict[Cell, dict[Knowledge, list[Outcome]]] = {cell: {arm: [] for arm in cell.arms} for cell in wanted}
        for (cell, knowledge, seed), outcome in zip(runs, outcomes, strict=True):
            found[cell][knowledge].append(outcome)
            if seed == seeds[-1] and knowledge is Knowledge.PERFECT:
                print(cell.label, *[f"{fmean(x.p90_seconds for x in found[cell][arm]):.3f}" for arm in cell.arms])
    made, verdicts = rows(given.scenarios, found)
    more = {"verdicts": verdicts, "cells": cell_records(found)}
    return write_results(_NAME, made, seed=0, file=given.out, more=more)


def _full_load(requests: int, key: tuple[float, float]) -> float:
    working_set, pause_seconds = key
    return full_load(requests, working_set, pause_seconds=pause_seconds)


def _simulate(requests: int, run: tuple[Cell, Knowledge, int]) -> Outcome:
    cell, knowledge, seed = run
    return simulate(cell, requests, knowledge, seed)
