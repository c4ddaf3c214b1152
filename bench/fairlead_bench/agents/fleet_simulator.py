"""Coding agents in the fleet simulator: the default preset, the others and one pool.

    python -m fairlead_bench coding-agents [--loads low,high] [--presets A,B] [--seeds 5]
                                           [--out out/bench/coding-agents.json]

Three gateways that share what they know stand before eight engines (h100-llama8b). The traffic is
``fairlead_sim.workload.coding_agents`` as a closed loop, in which a call waits for the call before.
A load is a rate of calls; at ``high``, sessions have more tokens than all engines hold. Sessions
have no name, and ``named`` is the default with names. ``one pool`` has one memory of the size of
all.

Another experiment is that of ``agents``: 16 sessions of 6 turns with 400 tokens each, behind one
gateway or three.

The seeds are the first for judging, on which nothing was tuned.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from random import Random
from statistics import fmean
from typing import Final

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import SloTargets
from fairlead_bench.judging_seeds import judging_seeds_of
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_gateway.routing import PRESETS
from fairlead_sim.experiments.trial import PooledCacheBound
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.results import run_metrics, without_warmup
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.gateway_cluster import NO_SHARING, ClusterOptions, GatewayCluster, SharingOptions
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.coding_agents import AgentCall, coding_agent_calls
from fairlead_sim.workload.generators import BlockIds
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

_NAME = "coding-agents"
ENGINES: Final = 8
PROFILE: Final = "h100-llama8b"
SEEDS: Final = tuple(judging_seeds_of(_NAME)[:5])
LOADS: Final[Mapping[str, tuple[float, int]]] = {"low": (0.6, 1_000), "medium": (1.6, 2_000), "high": (3.0, 3_000)}
"""Calls per second once sessions end as they begin, and the calls of a run."""
IDLE: Final = "idle"
DEFAULT, NAMED, POOL = "dual-hash", "named", "one pool"
_SECONDS = 5.0
_BASELINE = "round-robin"


@dataclass(frozen=True, slots=True)
class CodingCell:
    """One run.

    preset: a routing preset, ``named`` or ``one pool``.
    load: of ``LOADS``, or ``idle`` for the sessions of ``agents``.
    """

    preset: str
    load: str
    seed: int
    gateways: int = 3


@dataclass(frozen=True, slots=True)
class CodingFigures:
    """Figures of one run after the first tenth of its calls, without one if the fleet is idle.

    moves: share of the calls after one other call that another engine gets.
    """

    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    cached: float
    moves: float
    failures: int


def idle_calls(seed: int, *, sessions: int = 16, turns: int = 6) -> list[AgentCall]:
    """Returns sessions behind one system prompt of 3,072 tokens; a turn adds 400 tokens."""
    random, fresh, made = Random(f"idle {seed}"), BlockIds(), list[AgentCall]()
    common = fresh.take(6)
    for number in range(sessions):
        blocks, tokens, at, after = common, 6 * TRACE_BLOCK_TOKENS, 0.0, tuple[str, ...]()
        for turn in range(turns):
            tokens += 400
            blocks += fresh.take(-(-tokens // TRACE_BLOCK_TOKENS) - len(blocks))
            pause = random.uniform(0.1, 0.5)
            at += pause
            request = TraceRequest(f"s{number}.{turn}", at, tokens, 8, blocks, session=f"s{number}")
            made.append(AgentCall(request, after, pause))
            after = (request.id,)
    return made


def measure(cell: CodingCell) -> CodingFigures:
    """Returns the figures of one cell."""
    is_idle = cell.load == IDLE
    block_tokens = 16 if is_idle else TRACE_BLOCK_TOKENS
    if is_idle:
        calls = idle_calls(cell.seed)
    else:
        rate, count = LOADS[cell.load]
        calls = coding_agent_calls(count, seed=cell.seed, rate=rate)
    results = _simulation(cell, block_tokens).run_calls(calls)
    by_arrival = sorted(results, key=_arrival)
    first = {call.request.id for call in calls if not call.after}
    counted = [one for one in by_arrival if one.id not in first] if is_idle else without_warmup(by_arrival)
    found = run_metrics(counted, ENGINES)
    instances = {result.id: result.instance for result in results}
    moves = [instances[call.after[0]] != instances[call.request.id] for call in calls if len(call.after) == 1]
    return CodingFigures(
        found.ttft_p50 or 0.0,
        found.ttft_p90 or 0.0,
        found.ttft_p99 or 0.0,
        found.cached_token_share,
        fmean(moves),
        found.errors,
    )


def _arrival(result: RequestResult) -> float:
    return result.arrival


def _simulation(cell: CodingCell, block_tokens: int) -> FleetSimulation:
    profile, names = builtin_profile(PROFILE), [f"e-{number}" for number in range(ENGINES)]
    if cell.preset == POOL:
        fleet = FleetOptions(names, profile, block_tokens, is_pooled=True)
        prompts = TracePromptCache(block_tokens)
        return FleetSimulation(PooledCacheBound(names, profile, prompts), fleet, prompts=prompts)
    preset = DEFAULT if cell.preset == NAMED else cell.preset
    routing = RoutingOptions(SloTargets(ttft_seconds=_SECONDS), f"secret {cell.seed}".encode(), cell.seed, preset)
    pins = cell.preset == NAMED
    sharing = SharingOptions(index=True, pins=pins)
    if cell.gateways == 1:
        sharing = replace(NO_SHARING, index=True, pins=pins)
    fleet = FleetOptions(names, profile, block_tokens, publishes_kv_events=True)
    return FleetSimulation(GatewayCluster(fleet, routing, ClusterOptions(cell.gateways, sharing)), fleet)


def rows(found: Mapping[CodingCell, CodingFigures], goals: Goals) -> list[ResultRow]:
    """Returns the rows of these cells, each a mean over its seeds."""
    means: dict[tuple[str, int, str], dict[str, float]] = {}
    for cell in found:
        place = (cell.load, cell.gateways, cell.preset)
        if place not in means:
            runs = [
                asdict(figures)
                for other, figures in found.items()
                if (other.load, other.gateways, other.preset) == place
            ]
            means[place] = {name: fmean([run[name] for run in runs]) for name in runs[0]}
    made: list[ResultRow] = []
    for load, gateways in dict.fromkeys((load, gateways) for load, gateways, _ in means):
        here = {preset: figures for (one, count, preset), figures in means.items() if (one, count) == (load, gateways)}
        made += _place_rows(f"{load}, {gateways} gateways", here, goals)
    return [*made, goals.value("calls that failed", "calls", sum([one.failures for one in found.values()]))]


def _place_rows(place: str, here: Mapping[str, Mapping[str, float]], goals: Goals) -> list[ResultRow]:
    """Returns the rows of one load: the default against others, then every preset."""
    made: list[ResultRow] = []
    mine = here.get(DEFAULT)
    if mine is not None:
        others = {preset: here[preset]["ttft_p90"] for preset in PRESETS if preset != DEFAULT and preset in here}
        if _BASELINE in others:
            metric = f"{place}: p90 TTFT: default ÷ {_BASELINE}"
            made.append(goals.ratio(metric, "s", mine["ttft_p90"], _BASELINE, others[_BASELINE]))
        if others:
            best = min(others, key=others.__getitem__)
            metric = f"{place}: p90 TTFT: default ÷ best other preset"
            made.append(goals.ratio(metric, "s", mine["ttft_p90"], best, others[best]))
        if POOL in here:
            metric = f"{place}: cached share: default ÷ one pool"
            made.append(goals.ratio(metric, "share", mine["cached"], POOL, here[POOL]["cached"]))
    for preset, figures in here.items():
        for title, name in (("p50 TTFT", "ttft_p50"), ("p90 TTFT", "ttft_p90"), ("p99 TTFT", "ttft_p99")):
            made.append(goals.value(f"{place}: {title}: {preset}", "s", figures[name]))
        made.append(goals.value(f"{place}: cached share: {preset}", "share", figures["cached"]))
        made.append(goals.value(f"{place}: moves: {preset}", "share", figures["moves"]))
    return made


def cells_of(loads: Sequence[str], presets: Sequence[str], seeds: Sequence[int]) -> list[CodingCell]:
    """Returns the cells of these loads; those of ``idle`` have one gateway and three."""
    return [
        CodingCell(preset, load, seed, gateways)
        for load in loads
        for gateways in ((1, 3) if load == IDLE else (3,))
        for preset in presets
        for seed in seeds
    ]


def main(arguments: list[str]) -> int:
    """Measures, writes and prints. A goal that does not hold stays in the table."""
    given = parse_options(
        _NAME,
        "Coding agents in the fleet simulator.",
        arguments,
        loads=([IDLE, *LOADS], "only these"),
        presets=([*PRESETS, NAMED, POOL], "only these"),
        seeds=len(SEEDS),
        jobs=min(os.cpu_count() or 1, 16),
    )
    cells = cells_of(given.loads, given.presets, SEEDS[: given.seeds])
    with ProcessPoolExecutor(given.jobs) as pool:
        found = dict(zip(cells, pool.map(measure, cells), strict=True))
    table = [asdict(cell) | asdict(figures) for cell, figures in found.items()]
    write_results(_NAME, rows(found, load_goals(_NAME)), seed=SEEDS[0], file=given.out, more={"runs": table})
    return 0
