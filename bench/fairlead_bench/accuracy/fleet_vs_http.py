"""Accuracy of the fleet simulator against gateways and simulated engines over HTTP.

    python -m fairlead_bench agreement [--requests 400] [--speed 1] [--out out/bench/agreement.json]

Both sides have the same requests, instance names and secret, and hence the same home instances. One
gateway, and three that share a Redis, run under four presets each. Requests reach one of the three
by the same draw on both sides. The rows compare the share of prompt tokens found in caches, the
mean TTFT, and the order of the presets by either. Two presets whose simulated values differ by less
than ``TIE`` have no order.

A policy by load is chaotic (see ``fairlead_cli.replay.fleet_simulation``). Therefore the simulated
value is the mean over arrivals that are a few milliseconds apart.

The default preset also runs alone, at a rate at which it queues nearly every second request before
engines; the others do not queue.
"""

import asyncio
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import combinations
from operator import attrgetter
from pathlib import Path
from random import Random
from statistics import fmean

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import SloTargets
from fairlead_bench.results import NO_GOALS, ResultRow, load_goals, parse_options, write_results
from fairlead_cli.replay.client.open_loop_client import OpenLoopClient, ReplayResult
from fairlead_cli.replay.fleet_simulation import ENGINE_BLOCK_TOKENS, JITTER_SECONDS, jitter_arrivals
from fairlead_cli.replay.report.report import scale_times
from fairlead_cli.replay.traffic import PromptBuilder, ReplayTarget, plan_requests, prefix_chains
from fairlead_gateway.routing import PrefixChain
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.gateway_cluster import ClusterOptions, GatewayCluster
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import TraceRequest, at_rate
from fairlead_testing.engines.disaggregated import engine_processes
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of, with_profile
from fairlead_testing.redis.valkey import running_valkey

NAME = "agreement"
PRESETS = ("dual-hash", "prefix-cache", "llm-d", "round-robin")
GATEWAYS = (1, 3)
ENGINES = 4
NAMES = tuple([f"e-{number}/{number}/0" for number in range(ENGINES)])
PROFILE = "h100-llama8b"
FAMILY = "agents"
RATE = 8.0
BUSY_RATE = 20.0
HOLDING = "dual-hash"
DRAWS = 5
TIE = 0.03
SEED = 21
SECRET = "the secret of all gateways of this benchmark"
OBJECTIVES = SloTargets(ttft_seconds=5.0)


@dataclass(frozen=True, slots=True)
class RunResult:
    """Figures of one run, or the mean of several: share of prompt tokens found in caches, seconds
    to the first token, failures. ``retraced`` is the time to the first token that the simulator
    predicts for the choices of a live run."""

    cached: float
    ttft: float
    failed: int = 0
    retraced: float | None = None


LiveAndSimulated = tuple[RunResult, RunResult]
"""Live and simulated."""


@dataclass(frozen=True, slots=True)
class EngineGroup:
    """Equal engines as the simulator has them."""

    names: Sequence[str]
    profile: EngineProfile
    block_tokens: int = ENGINE_BLOCK_TOKENS


SAME_AS_LIVE = EngineGroup(NAMES, builtin_profile(PROFILE))


def simulate(
    count: int,
    rule: str,
    requests: Sequence[TraceRequest],
    chain: Callable[[TraceRequest], PrefixChain],
    engines: EngineGroup = SAME_AS_LIVE,
) -> RunResult:
    """Returns the mean over draws of arrivals."""
    found = []
    for draw in range(DRAWS):
        arrivals = jitter_arrivals(requests, JITTER_SECONDS, draw) if draw else requests
        served = _simulate_requests(count, rule, arrivals, engines, chain=chain)
        cached = sum(one.cached_tokens for one in served) / sum(one.prompt_tokens for one in served)
        found.append(RunResult(cached, _mean_ttft(served)))
    return RunResult(fmean(one.cached for one in found), fmean(one.ttft for one in found))


def _simulate_requests(
    count: int,
    rule: str,
    requests: Sequence[TraceRequest],
    engines: EngineGroup,
    *,
    chain: Callable[[TraceRequest], PrefixChain] | None = None,
    choices: Mapping[str, str] | None = None,
) -> list[RequestResult]:
    fleet = FleetOptions(engines.names, engines.profile, engines.block_tokens)
    routing = RoutingOptions(OBJECTIVES, SECRET.encode(), SEED, rule, chain, choices or {})
    return FleetSimulation(GatewayCluster(fleet, routing, ClusterOptions(count)), fleet).run(requests)


def _mean_ttft(served: Sequence[RequestResult]) -> float:
    return fmean(one.ttft_seconds for one in served if one.ttft_seconds is not None)


async def run_live(
    count: int, rule: str, requests: Sequence[TraceRequest], builder: PromptBuilder, speed: float
) -> RunResult:
    """Processes of their own, and gone again."""
    os.environ["FAIRLEAD_HASH_SECRET"] = SECRET
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # fmt: off
        engines = await stack.enter_async_context(engine_processes(
            ENGINES, "--block-size", str(ENGINE_BLOCK_TOKENS), "--max-model-len", "32768", "--profile", PROFILE,
            "--speed", str(speed),
        ))
        # fmt: on
        profile = builtin_profile(PROFILE).sped_up(speed)
        path = folder / "fleet.yaml"
        urls = [engine.url for engine in engines]
        write_fleet_file(path, with_profile(fleet_of(urls, preset=rule, objectives=OBJECTIVES), profile))
        sharing = ["--redis", stack.enter_context(running_valkey(folder)).url] if count > 1 else []
        running = [await stack.enter_async_context(gateway_process(path, *sharing)) for _ in range(count)]
        outcomes = await replay([one.url for one in running], requests, builder, speed)
    return summarize(count, rule, outcomes, requests)


def summarize(
    count: int,
    rule: str,
    outcomes: Sequence[ReplayResult],
    requests: Sequence[TraceRequest],
    engines: EngineGroup = SAME_AS_LIVE,
) -> RunResult:
    """Returns the figures of a live run."""
    whole = [outcome for outcome in outcomes if outcome.error is None]
    choices = {one.id: one.instance for one in whole if one.instance is not None}
    return RunResult(
        sum(one.cached_tokens or 0 for one in whole) / max(1, sum(one.prompt_tokens for one in whole)),
        fmean(one.ttft_seconds for one in whole if one.ttft_seconds is not None),
        len(outcomes) - len(whole),
        _mean_ttft(_simulate_requests(count, rule, requests, engines, choices=choices)),
    )


async def replay(
    urls: Sequence[str], requests: Sequence[TraceRequest], builder: PromptBuilder, speed: float
) -> list[ReplayResult]:
    """Sends each request to the gateway that the simulator draws for it."""
    draw = Random(f"which gateway {SEED}")
    ways = [draw.randrange(len(urls)) for _ in requests]
    runs = []
    for number, url in enumerate(urls):
        mine = [one for one, way in zip(requests, ways, strict=True) if way == number]
        target = ReplayTarget(url, model=MODEL_KEY.partition("/")[2])
        planned = plan_requests(mine, target, speed=speed, builder=builder)
        runs.append(OpenLoopClient(target.host, target.port).run(planned))
    return [time for run in await asyncio.gather(*runs) for time in scale_times(run.results, speed)]


def rows(found: Mapping[tuple[int, str], LiveAndSimulated], busy: Mapping[int, LiveAndSimulated]) -> list[ResultRow]:
    """Returns the rows of live and simulated runs, by number of gateways and preset. ``busy`` holds
    the preset that queues requests, by number of gateways."""
    wanted = load_goals(NAME)
    made = []
    for count in GATEWAYS:
        apart, slower = [], []
        pairs = [found[count, rule] for rule in PRESETS]
        for rule in PRESETS:
            real, same = found[count, rule]
            apart.append(abs(100 * (real.cached - same.cached)))
            slower.append(real.ttft / real.retraced if real.retraced else math.inf)
            made += _compare_sides(f"{count} gateway{'s' if count > 1 else ''}, {rule}", real, same)
        for metric, value, unit in (
            (f"{count} gateways: cached tokens, live and simulated apart, at most", max(apart), "points"),
            (
                f"{count} gateways: pairs of presets in another order by cached tokens",
                cross_validation_rows(pairs, attrgetter("cached")),
                "pairs",
            ),
            (
                f"{count} gateways: pairs of presets in another order by mean TTFT",
                cross_validation_rows(pairs, attrgetter("ttft")),
                "pairs",
            ),
            (
                f"{count} gateways: mean TTFT on the same choices, live ÷ simulated, furthest from 1",
                max(slower, key=lambda one: abs(one - 1.0)),
                "ratio",
            ),
        ):
            made.append(wanted.value(metric, unit, value))
    for count, both in busy.items():
        made += _compare_sides(f"{count} gateway{'s' if count > 1 else ''}, {HOLDING} at {BUSY_RATE:g}/s", *both)
    metric = "requests that failed"
    failed = sum(real.failed for real, _ in (*found.values(), *busy.values()))
    made.append(wanted.value(metric, "requests", failed))
    return made


def _compare_sides(what: str, real: RunResult, same: RunResult) -> list[ResultRow]:
    return [
        NO_GOALS.ratio(f"{what}: cached tokens", "share", real.cached, "simulated", same.cached),
        NO_GOALS.ratio(f"{what}: mean TTFT on its own choices", "s", real.ttft, "simulated", real.retraced),
        NO_GOALS.ratio(f"{what}: mean TTFT", "s", real.ttft, "simulated", same.ttft),
    ]


def cross_validation_rows(pairs: Sequence[tuple[RunResult, RunResult]], what: Callable[[RunResult], float]) -> int:
    """Returns how many pairs of presets rank differently live and simulated."""
    found = 0
    for one, other in combinations(pairs, 2):
        (real, same), (real_other, same_other) = map(what, one), map(what, other)
        if abs(same - same_other) > TIE * max(same, same_other):
            found += (real < real_other) != (same < same_other)
    return found


async def _main(count: int, speed: float, out: Path) -> None:
    asked = FAMILIES[FAMILY](count, seed=SEED)
    builder = PromptBuilder(Tokenizer())
    chain = prefix_chains(builder, secret=SECRET.encode(), model_key=MODEL_KEY)
    chains = {request.id: chain(request) for request in asked}

    async def both(gateways: int, rule: str, rate: float) -> LiveAndSimulated:
        requests = at_rate(asked, rate)
        same = simulate(gateways, rule, requests, lambda request: chains[request.id])
        real = await run_live(gateways, rule, requests, builder, speed)
        print(gateways, rule, rate, real, same, flush=True)
        return real, same

    found = {(gateways, rule): await both(gateways, rule, RATE) for gateways in GATEWAYS for rule in PRESETS}
    busy = {gateways: await both(gateways, HOLDING, BUSY_RATE) for gateways in GATEWAYS}
    write_results(NAME, rows(found, busy), seed=SEED, file=out)


def main(arguments: list[str]) -> int:
    """Measures, writes and prints."""
    given = parse_options(NAME, "The simulator compared with what it simulates.", arguments, requests=400, speed=1.0)
    asyncio.run(_main(given.requests, given.speed, given.out))
    return 0
