"""Cache hits of gateways that share, in the fleet simulator: equal requests, different knowledge.

    python -m fairlead_bench sharing [--trace FILE] [--requests 10091] [--seeds 3]
                                     [--out out/bench/sharing.json]

There are two kinds of traffic.

- *Conversations* (the trace, or generated traffic like it) arrive at 8 requests/s at eight engines.
  Together these hold 4 % of the traffic's different tokens. One gateway restarts in the middle.
- *Short requests* take less time than gateways need to report them: sessions of agents, ten at
  once, at four engines of 24,000 tokens each.

No data is sent and no time is read, so equal arguments give equal rows. The best possible result is
a row, too: gateways that know the cache of every engine before each choice.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import SloTargets
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results
from fairlead_cli.replay.traffic import load_traffic
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.gateway_cluster import (
    NO_SHARING,
    PERFECT_KNOWLEDGE,
    ClusterOptions,
    GatewayCluster,
    GatewayRestart,
    SharingOptions,
)
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.generators import agent_sessions
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

_NAME = "sharing"
REQUESTS = 10_091
RATE, CACHE_SHARE, ENGINES = 8.0, 0.04, 8
WARM_UP_SHARE = 0.1
"""Share of the conversations' requests that fill the caches and do not count."""
SHARED = SharingOptions(index=True)

SHORT_SEEDS = 32


@dataclass(frozen=True, slots=True)
class GatewayTopology:
    """So many gateways with such knowledge, and whether one of them is restarted in the middle."""

    gateways: int
    knowledge: SharingOptions
    restarted: bool = False


CONVERSATIONS = {
    "one gateway": GatewayTopology(1, NO_SHARING),
    "one that knows everything, restarted": GatewayTopology(1, PERFECT_KNOWLEDGE, True),
    "three apart, one restarted": GatewayTopology(3, NO_SHARING, True),
    "three that share, one restarted": GatewayTopology(3, SHARED, True),
    "three that share": GatewayTopology(3, SHARED),
}
SHORT = {
    "one gateway": GatewayTopology(1, NO_SHARING),
    "three apart": GatewayTopology(3, NO_SHARING),
    "three that share": GatewayTopology(3, SHARED),
}


@dataclass(frozen=True, slots=True)
class SharingFigures:
    """Figures of one run: the share of prompt tokens found in caches, mean seconds to the first
    token, failed requests."""

    cached: float
    ttft_seconds: float
    failures: int


def simulate_conversations(
    requests: Sequence[TraceRequest], form: GatewayTopology, seed: int, *, share: float = CACHE_SHARE
) -> SharingFigures:
    """Returns the figures of one run in the open loop.

    share: of the different tokens, which the engines hold together.
    """
    different = TRACE_BLOCK_TOKENS * len({block for request in requests for block in request.blocks})
    blocks = int(different * share / ENGINES) // TRACE_BLOCK_TOKENS
    profile = replace(builtin_profile("h100-llama8b"), kv_tokens=blocks * TRACE_BLOCK_TOKENS)
    names = [f"e-{index}" for index in range(ENGINES)]
    restart = GatewayRestart(form.gateways - 1, len(requests) // 2) if form.restarted else None
    fleet = FleetOptions(names, profile, TRACE_BLOCK_TOKENS, publishes_kv_events=form.knowledge.index)
    course = _simulation(form, fleet, SloTargets(ttft_seconds=5.0), seed, restart)
    return _figures(course.run(requests)[int(WARM_UP_SHARE * len(requests)) :])


def _simulation(
    form: GatewayTopology, fleet: FleetOptions, slo: SloTargets, seed: int, restart: GatewayRestart | None = None
) -> FleetSimulation:
    routing = RoutingOptions(slo, f"secret {seed}".encode(), seed)
    cluster = GatewayCluster(fleet, routing, ClusterOptions(form.gateways, form.knowledge, restart=restart))
    return FleetSimulation(cluster, fleet)


def simulate_short_prompts(form: GatewayTopology, seed: int) -> SharingFigures:
    """Returns the figures of one run in the closed loop."""
    profile = replace(builtin_profile("tiny-cpu"), kv_tokens=24_000)
    names = [f"e-{index}" for index in range(4)]
    fleet = FleetOptions(names, profile, 16, publishes_kv_events=form.knowledge.index)
    course = _simulation(form, fleet, SloTargets(), seed)
    return _figures(
        course.run_sessions(agent_sessions(20, seed=seed), concurrency=10, round_trip_seconds=0.01, seed=seed)
    )


def _figures(served: Sequence[RequestResult]) -> SharingFigures:
    firsts = [one.ttft_seconds for one in served if one.ttft_seconds is not None]
    return SharingFigures(
        sum(one.cached_tokens for one in served) / sum(one.prompt_tokens for one in served),
        fmean(firsts),
        sum(one.error is not None for one in served),
    )


def rows(
    long: Mapping[str, Sequence[SharingFigures]], brief: Mapping[str, Sequence[SharingFigures]]
) -> list[ResultRow]:
    """Returns the rows with goals, then the others.

    The input has the figures of each seed, by topology.
    """
    goal = load_goals(_NAME)
    held = {name: fmean([run.cached for run in runs]) for name, runs in long.items()}
    made: list[ResultRow] = []
    shared, apart, known = (
        "three that share, one restarted",
        "three apart, one restarted",
        "one that knows everything, restarted",
    )
    for versus in (apart, known):
        metric = f"conversations: cached tokens: {shared} ÷ {versus}"
        made.append(goal.ratio(metric, "share", held[shared], versus, held[versus]))
    for kind, found in (("conversations", long), ("short requests", brief)):
        metric = f"{kind}: cached tokens: one gateway − three that share, points"
        lost = fmean([one.cached for one in found["one gateway"]])
        lost -= fmean([one.cached for one in found["three that share"]])
        made.append(goal.value(metric, "points", 100 * lost))
    metric = "short requests: cached tokens: three apart − three that share, points"
    lost = fmean([one.cached for one in brief["three apart"]]) - fmean(
        [one.cached for one in brief["three that share"]]
    )
    made.append(goal.value(metric, "points", 100 * lost))
    metric = "requests that failed"
    failures = sum(run.failures for found in (long, brief) for runs in found.values() for run in runs)
    made.append(goal.value(metric, "requests", failures))
    for kind, found in (("conversations", long), ("short requests", brief)):
        for name, runs in found.items():
            made.append(goal.value(f"{kind}: cached tokens: {name}", "share", fmean([run.cached for run in runs])))
    return made


def main(arguments: list[str]) -> int:
    """Measures, writes and prints."""
    given = parse_options(
        _NAME,
        "Several gateways in the fleet simulator, and what they know.",
        arguments,
        trace=(Path, "a trace in Mooncake's format; without it one is generated"),
        requests=REQUESTS,
        seeds=3,
    )
    wanted = load_traffic(given.trace, limit=given.requests, rate=RATE)
    print(f"traffic: {wanted.name}, {len(wanted.requests)} requests")
    with ProcessPoolExecutor(max_workers=2) as pool:
        seeds = range(given.seeds)
        long = {
            name: pool.map(partial(simulate_conversations, wanted.requests, form), seeds)
            for name, form in CONVERSATIONS.items()
        }
        brief = {
            name: pool.map(partial(simulate_short_prompts, form), range(SHORT_SEEDS)) for name, form in SHORT.items()
        }
        found = rows(
            {name: list(runs) for name, runs in long.items()}, {name: list(runs) for name, runs in brief.items()}
        )
    write_results(_NAME, found, seed=0, file=given.out)
    return 0
