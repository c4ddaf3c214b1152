"""The worth of KV in CPU memory, on disk and in a shared store, for questions to databases.

    python -m fairlead_bench tiers [--requests 3000] [--seeds 5] [--out out/bench/tiers.json]

Four engines with A10 GPUs, as a roofline of its data sheet, serve an 8B model. A prompt is the
schema of one of many databases, and a question. All schemas have three times the tokens of all
GPUs' memory. With 85 prompt tokens for each generated one, it has the shape of Bird-SQL as AIBrix
reports it (arXiv 2504.03648, table 1). The databases are equally popular.

Peak throughput is that of a closed loop of ``CLIENTS``. Latencies are those of an open loop at
``LATENCY_LOAD`` of the peak without sharing. Each row is a ratio paired by seed, with the interval
of Student's t at 95 %. No time is read, so equal arguments give equal rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from random import Random
from statistics import fmean
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import SloTargets
from fairlead_bench.judging_seeds import judging_seeds_of
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results
from fairlead_bench.sharing.knowledge import compare
from fairlead_cli.catalog.roofline import GIB, AcceleratorFigures, ModelCost, roofline_profile
from fairlead_sim.engine.lower_tiers import TierOptions, with_load_prices
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.gateway_cluster import NO_SHARING, ClusterOptions, GatewayCluster
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.generators import BlockIds, GrowingPrompt, lognormal, poisson_process
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

_NAME = "tiers"
SEEDS: Final = tuple(judging_seeds_of(_NAME)[:5])
ENGINES: Final = 4
REQUESTS: Final = 3_000
WARM_UP_SHARE: Final = 0.2
CLIENTS: Final = 64
LATENCY_LOAD: Final = 0.9
OBJECTIVE_SECONDS: Final = 2.0
WORKING_SET: Final = 3.0
"""Tokens of all schemas ÷ the tokens that all GPUs hold together."""
SCHEMA_TOKENS: Final = 3_900.0
QUESTION_TOKENS: Final = 128
ANSWER_TOKENS: Final = 60

A10: Final = AcceleratorFigures(
    memory_bytes=int(22.5 * GIB),
    bytes_per_second=600e9,
    flops={"bf16": 125e12},
    devices_per_node=4,
    node_label="",
    source="NVIDIA A10 Tensor Core GPU data sheet",
)
MODEL_8B: Final = ModelCost(
    weight_bytes=16.06e9, active_parameters=8.03e9, attention_flops=4 * 32 * 4_096, kv_bytes=131_072
)
CPU_BYTES_PER_SECOND: Final = 20e9
"""PCIe 4.0 with 16 lanes, as far as copies reach it."""
STORE_BYTES_PER_SECOND: Final = 25e9 / 8
"""A network of 25 Gbit/s."""
CPU_MEMORY: Final = 4.0
STORE_MEMORY: Final = 8.0
DISK_MEMORY: Final = 16.0
"""Sizes, as multiples of the GPU's KV memory; of one engine, or of all for the store."""
DISK_PRICES: Final = (0.2, 0.5, 0.8)
"""Seconds to load a token from disk ÷ seconds to compute it."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A configuration that is compared.

    disk_price: with a disk instead of CPU memory and a store, at this price; 0: without.
    """

    name: str
    preset: str = "dual-hash"
    has_tiers: bool = False
    has_prices: bool = False
    disk_price: float = 0.0


NO_SHARING_ARM: Final = Arm("no sharing", preset="least-request")
GPU_ARM: Final = Arm("GPU memory alone")
BLIND_ARM: Final = Arm("tiers without prices", has_tiers=True)
PRICED_ARM: Final = Arm("tiers with prices", has_tiers=True, has_prices=True)
DISK_ARMS: Final = tuple(
    Arm(f"disk at {price:.0%} of computing, {with_or_without} prices", "dual-hash", True, has_prices, price)
    for price, (has_prices, with_or_without) in product(DISK_PRICES, ((False, "without"), (True, "with")))
)
ARMS: Final = (NO_SHARING_ARM, GPU_ARM, BLIND_ARM, PRICED_ARM, *DISK_ARMS)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of one arm and seed.

    tokens_per_second, requests_per_second: in the closed loop. Tokens are prompts' and answers'.
    latency_seconds, ttft_seconds, p90_ttft_seconds, cached_share: in the open loop.
    """

    tokens_per_second: float
    requests_per_second: float
    latency_seconds: float
    ttft_seconds: float
    p90_ttft_seconds: float
    cached_share: float


def profile() -> EngineProfile:
    """Returns the profile of one engine; its KV memory is what the weights leave of nine tenths."""
    kv_tokens = int((0.9 * A10.memory_bytes - MODEL_8B.weight_bytes) / MODEL_8B.kv_bytes)
    blocks = kv_tokens // TRACE_BLOCK_TOKENS
    return roofline_profile("a10-8b", MODEL_8B, A10, devices=1, kv_tokens=blocks * TRACE_BLOCK_TOKENS)


def lower_tiers(arm: Arm, engine: EngineProfile) -> list[TierOptions]:
    """Returns the slower memory of an arm."""
    if not arm.has_tiers:
        return []
    if arm.disk_price:
        seconds = arm.disk_price * engine.prefill_token_seconds
        return [TierOptions("disk", int(DISK_MEMORY * engine.kv_tokens), seconds)]
    cpu, store = MODEL_8B.kv_bytes / CPU_BYTES_PER_SECOND, MODEL_8B.kv_bytes / STORE_BYTES_PER_SECOND
    return [
        TierOptions("cpu", int(CPU_MEMORY * engine.kv_tokens), cpu),
        TierOptions("remote", int(STORE_MEMORY * ENGINES * engine.kv_tokens), store),
    ]


def traffic(requests: int, engine: EngineProfile, seed: int) -> list[TraceRequest]:
    """Returns questions to databases, without arrival times."""
    random_, ids = Random(f"questions {seed}"), BlockIds()
    room, schemas = int(WORKING_SET * ENGINES * engine.kv_tokens / TRACE_BLOCK_TOKENS), []
    while room > 0:
        blocks = math.ceil(lognormal(random_, SCHEMA_TOKENS, 0.5, maximum=16_000.0) / TRACE_BLOCK_TOKENS)
        schemas.append(ids.take(blocks))
        room -= blocks
    found = []
    for number in range(requests):
        prompt = GrowingPrompt(ids, random_.choice(schemas), QUESTION_TOKENS)
        found.append(TraceRequest(f"q{number}", 0.0, prompt.tokens, ANSWER_TOKENS, prompt.blocks))
    return found


def _simulation(arm: Arm, engine: EngineProfile, seed: int) -> FleetSimulation:
    tiers = lower_tiers(arm, engine)
    stated = with_load_prices(engine, tiers) if arm.has_prices else engine
    names = [f"e-{index}" for index in range(ENGINES)]
    fleet = FleetOptions(names, engine, TRACE_BLOCK_TOKENS, publishes_kv_events=arm.has_tiers, lower_tiers=tiers)
    routing = RoutingOptions(
        SloTargets(ttft_seconds=OBJECTIVE_SECONDS), f"secret {seed}".encode(), seed, preset=arm.preset
    )
    known = replace(NO_SHARING, index=arm.has_tiers)
    return FleetSimulation(GatewayCluster(fleet, routing, ClusterOptions(1, known, stated_profile=stated)), fleet)


def _counted(results: Sequence[RequestResult]) -> list[RequestResult]:
    ordered = sorted(results, key=lambda result: result.arrival)
    counted = ordered[int(WARM_UP_SHARE * len(ordered)) :]
    assert all(result.error is None for result in counted)
    return counted


def peak(arm: Arm, requests: int, seed: int) -> tuple[float, float]:
    """Returns tokens and requests per second of the closed loop."""
    engine = profile()
    sessions = [[request] for request in traffic(requests, engine, seed)]
    results = _simulation(arm, engine, seed).run_sessions(
        sessions, concurrency=CLIENTS, round_trip_seconds=0.001, seed=seed
    )
    counted = _counted(results)
    seconds = max(result.finish or 0.0 for result in counted) - counted[0].arrival
    tokens = sum(result.prompt_tokens + result.output_tokens for result in counted)
    return tokens / seconds, len(counted) / seconds


def measure(run: tuple[Arm, int], requests: int) -> Outcome:
    """Returns the figures of one arm and seed."""
    arm, seed = run
    engine = profile()
    tokens, rate = peak(arm, requests, seed)
    load = LATENCY_LOAD * (rate if arm is NO_SHARING_ARM else peak(NO_SHARING_ARM, requests, seed)[1])
    times = poisson_process(Random(f"arrivals {seed}"), lambda _: load, load, math.inf)
    arrivals = [replace(request, arrival=next(times)) for request in traffic(requests, engine, seed)]
    counted = _counted(_simulation(arm, engine, seed).run(arrivals))
    waited = sorted(result.ttft_seconds or 0.0 for result in counted)
    return Outcome(
        tokens,
        rate,
        fmean([(result.finish or 0.0) - result.arrival for result in counted]),
        fmean(waited),
        waited[int(0.9 * len(waited))],
        sum(result.cached_tokens for result in counted) / sum(result.prompt_tokens for result in counted),
    )


_MEASURES: Final[Mapping[str, Callable[[Outcome], float]]] = {
    "peak throughput": lambda outcome: outcome.tokens_per_second,
    "mean latency": lambda outcome: outcome.latency_seconds,
    "mean TTFT": lambda outcome: outcome.ttft_seconds,
    "p90 TTFT": lambda outcome: outcome.p90_ttft_seconds,
}


def rows(found: Mapping[Arm, Sequence[Outcome]]) -> tuple[list[ResultRow], list[dict[str, object]]]:
    """Returns the ratios to no sharing, and those of prices to none, with their intervals.

    found: outcomes of each seed.
    """
    goals, made, intervals = load_goals(_NAME), list[ResultRow](), list[dict[str, object]]()
    pairs = [(arm, NO_SHARING_ARM) for arm in found if arm is not NO_SHARING_ARM]
    pairs += [(PRICED_ARM, BLIND_ARM), *zip(DISK_ARMS[1::2], DISK_ARMS[::2], strict=True)]
    for arm, other in pairs:
        for measure_name, read in _MEASURES.items():
            comparison = compare([read(one) / read(two) for one, two in zip(found[arm], found[other], strict=True)])
            metric = f"{measure_name}: {arm.name} ÷ {other.name}"
            made.append(goals.value(metric, "ratio", comparison.ratio))
            intervals.append({"row": metric, **asdict(comparison)})
    return made, intervals


def main(arguments: list[str]) -> int:
    """Measures, writes and prints."""
    given = parse_options(
        _NAME,
        "Questions to databases with KV in several tiers, in the fleet simulator.",
        arguments,
        requests=REQUESTS,
        seeds=len(SEEDS),
    )
    seeds = SEEDS[: given.seeds]
    runs = list(product(ARMS, seeds))
    with ProcessPoolExecutor(max_workers=2) as pool:
        outcomes = list(pool.map(partial(measure, requests=given.requests), runs))
    found: dict[Arm, list[Outcome]] = {arm: [] for arm in ARMS}
    for (arm, _), outcome in zip(runs, outcomes, strict=True):
        found[arm].append(outcome)
    made, intervals = rows(found)
    table = [
        {"arm": arm.name, "seed": seed, **asdict(outcome)}
        for arm, by_seed in found.items()
        for seed, outcome in zip(seeds, by_seed, strict=True)
    ]
    return write_results(_NAME, made, seed=0, file=given.out, more={"intervals": intervals, "runs": table})
