"""Fairness between tenants: one floods, three are steady; three gateways, eight engines.

    python -m fairlead_bench fairness [--out out/bench/fairness.json] [--seconds 14] [--seeds 1,2]

The engines are simulated (h100-llama8b); the gateways run their own cores in simulated time. The
steady tenants send an eighth of what the engines can compute each, the flood twice as much as all
engines. *Without fairness* is the default preset with its late binding, and no tenants.

Gaps of service are measured from the fifth second, when caches are warm, to the last arrival. After
it, requests wait at some engines only.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import SloTargets
from fairlead_bench.fairness import cache_timing
from fairlead_bench.fairness.fair_gateways import TTFT_SECONDS, FairCluster
from fairlead_bench.fairness.service_gap import OUTPUT_WEIGHT, largest_gap, waiting_windows
from fairlead_bench.fairness.traffic import (
    FLOOD,
    OUTPUT_TOKENS,
    OWN_BLOCKS,
    SHARED_BLOCKS,
    STEADY,
    request_seconds,
    tenant_requests,
)
from fairlead_bench.results import ResultRow, load_goals, ratio_row, value_row, write_results
from fairlead_gateway.admission.fair_share import SAVED_SECONDS
from fairlead_gateway.admission.request_queue import QUANTUM_SECONDS
from fairlead_sim.fleet.fleet_options import FleetOptions
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetSimulation
from fairlead_sim.gateways.admission_gate import TenantClass
from fairlead_sim.gateways.cluster_options import ClusterOptions
from fairlead_sim.gateways.gateway_cluster import GatewayCluster
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

PROFILE = builtin_profile("h100-llama8b")
ENGINES, GATEWAYS = 8, 3
BLOCK_TOKENS = 64
STEADY_SHARE, FLOOD_SHARE = 0.125, 2.0
SECONDS = 14.0
_WARM_UP_SECONDS = 5.0
_SHARING_SECONDS = 0.15
"""The longest time until service of one gateway counts in another: 50 ms, and two polls of it."""
_NAME = "fairness"


@dataclass(frozen=True, slots=True)
class TenantRun:
    """The results of one run: by tenant, and the gaps of service."""

    ttft_seconds: Mapping[str, Sequence[float]]
    tokens_per_second: float
    cached_share: float
    served: Mapping[str, float] = field(default_factory=dict)
    gap_tokens: float = 0.0
    refused: Mapping[str, int] = field(default_factory=dict)


def capacity() -> float:
    """Returns the requests a second that all engines can serve."""
    return ENGINES / request_seconds(PROFILE)


def rates(*, flood: float = FLOOD_SHARE, steady: float = STEADY_SHARE) -> dict[str, float]:
    """Returns the requests a second by tenant; shares are of the capacity."""
    found = {tenant: steady * capacity() for tenant in STEADY if steady}
    return found | ({FLOOD: flood * capacity()} if flood else {})


def simulate(
    requests: Sequence[TraceRequest],
    seconds: float,
    classes: Mapping[str, TenantClass] | None,
    *,
    shares: bool = True,
    compared: tuple[str, str] | None = None,
) -> TenantRun:
    """Returns the results of one run.

    classes: tier and weight by tenant; None: without fairness.
    compared: the tenants whose gap of service is measured.
    """
    fleet = FleetOptions([f"e-{number}" for number in range(ENGINES)], PROFILE, BLOCK_TOKENS)
    routing = RoutingOptions(SloTargets(ttft_seconds=TTFT_SECONDS), b"bench")
    options = ClusterOptions(gateways=GATEWAYS)
    cluster: GatewayCluster
    if classes is None:
        cluster = GatewayCluster(fleet, routing, options)
    else:
        cluster = FairCluster(fleet, routing, options, classes=classes, shares=shares)
    results = FleetSimulation(cluster, fleet).run(requests)
    gap = 0.0
    if compared is not None and isinstance(cluster, FairCluster):
        weights = {tenant: (classes or {}).get(tenant, TenantClass()).weight for tenant in compared}
        costs = {result.id: _cost(result) for result in results}
        dispatches = [(at, tenant, costs[name]) for at, tenant, name in cluster.dispatches]
        windows = waiting_windows(cluster.waits, compared)
        steady = [(max(begin, _WARM_UP_SECONDS), min(end, seconds)) for begin, end in windows]
        gap = largest_gap(dispatches, steady, weights)
    return _run(requests, results, seconds, gap)


def _cost(result: RequestResult) -> float:
    return result.prompt_tokens - result.cached_tokens + OUTPUT_WEIGHT * result.output_tokens


def _run(requests: Sequence[TraceRequest], results: Sequence[RequestResult], seconds: float, gap: float) -> TenantRun:
    tenant_of = {request.id: request.tenant or "" for request in requests}
    ttft: dict[str, list[float]] = {}
    served: dict[str, float] = {}
    refused: dict[str, int] = {}
    tokens = prompt = cached = 0.0
    for result in results:
        tenant = tenant_of[result.id]
        if result.ttft_seconds is None:
            refused[tenant] = refused.get(tenant, 0) + (result.arrival >= _WARM_UP_SECONDS)
            continue
        first_at = result.arrival + result.ttft_seconds
        if result.arrival >= _WARM_UP_SECONDS:
            ttft.setdefault(tenant, []).append(result.ttft_seconds)
        if _WARM_UP_SECONDS <= first_at <= seconds:
            prompt += result.prompt_tokens
            cached += result.cached_tokens
            tokens += result.prompt_tokens + OUTPUT_WEIGHT * result.output_tokens
            served[tenant] = served.get(tenant, 0.0) + _cost(result)
    return TenantRun(ttft, tokens / (seconds - _WARM_UP_SECONDS), cached / prompt, served, gap, refused)


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that is at least as large as this share of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def gap_bound() -> float:
    """Returns the bound on the gap of service, in tokens.

    Two requests of the largest cost, a quantum, what a tenant may save, and what the other gateways
    serve until their reports arrive.
    """
    largest = (SHARED_BLOCKS + OWN_BLOCKS) * TRACE_BLOCK_TOKENS + OUTPUT_WEIGHT * max(OUTPUT_TOKENS)
    mean = OWN_BLOCKS * TRACE_BLOCK_TOKENS + OUTPUT_WEIGHT * sum(OUTPUT_TOKENS) / 2
    per_second = mean / request_seconds(PROFILE)
    lease = ENGINES * per_second * _SHARING_SECONDS / GATEWAYS
    return 2 * largest + (QUANTUM_SECONDS + SAVED_SECONDS) * per_second + GATEWAYS * lease


_ALL = dict.fromkeys((FLOOD, *STEADY), TenantClass())
_FIRST = {FLOOD: TenantClass(tier=1), **dict.fromkeys(STEADY, TenantClass(tier=0))}
_TWO_FLOODS = {"flood": TenantClass(weight=1.0), "steady-1": TenantClass(weight=1.0)}
_WEIGHTED = {"flood": TenantClass(weight=1.0), "steady-1": TenantClass(weight=3.0)}


def simulate_seed(seconds: float, seed: int) -> dict[str, TenantRun]:
    """Returns all runs of one seed, by name."""
    mixed = tenant_requests(rates(), seconds, seed)
    alone = tenant_requests(rates(flood=0.0), seconds, seed)
    floods = tenant_requests({"flood": 2.0 * capacity(), "steady-1": 1.2 * capacity()}, seconds, seed)
    pair = ("flood", "steady-1")
    return {
        "fair": simulate(mixed, seconds, _ALL),
        "fair, not shared": simulate(mixed, seconds, _ALL, shares=False),
        "steady ones Interactive": simulate(mixed, seconds, _FIRST),
        "without fairness": simulate(mixed, seconds, None),
        "alone": simulate(alone, seconds, _ALL),
        "two floods": simulate(floods, seconds, _TWO_FLOODS, compared=pair),
        "two floods, not shared": simulate(floods, seconds, _TWO_FLOODS, shares=False, compared=pair),
        "two floods, weights 1 and 3": simulate(floods, seconds, _WEIGHTED, compared=pair),
    }


def steady_p99(run: TenantRun) -> float:
    """Returns the p99 TTFT of the steady tenant that fares worst."""
    return max(percentile(run.ttft_seconds[tenant], 0.99) for tenant in STEADY)


def rows(found: Sequence[Mapping[str, TenantRun]], goals: Mapping[str, str]) -> list[ResultRow]:
    """Returns the rows of all seeds; means over seeds, except gaps, which are the largest."""

    def mean(name: str, value: str) -> float:
        return fmean([getattr(runs[name], value) for runs in found])

    def p99(name: str) -> float:
        return fmean([steady_p99(runs[name]) for runs in found])

    made: list[ResultRow] = []
    for name in ("fair", "steady ones Interactive", "fair, not shared", "without fairness"):
        metric = f"p99 TTFT of the steady tenants: {name} ÷ alone"
        made.append(ratio_row(metric, "s", p99(name), "alone", p99("alone"), goals.get(metric)))
    for value, unit, title in (
        ("tokens_per_second", "tokens/s", "throughput"),
        ("cached_share", "share", "cached share of prompts"),
    ):
        for name in ("fair", "steady ones Interactive"):
            metric, versus = f"{title}: {name} ÷ without fairness", "without fairness"
            made.append(ratio_row(metric, unit, mean(name, value), versus, mean(versus, value), goals.get(metric)))
    bound = gap_bound()
    for name in ("two floods", "two floods, weights 1 and 3", "two floods, not shared"):
        metric = f"service gap: {name} ÷ bound"
        gap = max(runs[name].gap_tokens for runs in found)
        made.append(ratio_row(metric, "tokens", gap, "bound", bound, goals.get(metric)))
    shares = [runs["two floods, weights 1 and 3"].served for runs in found]
    metric = "service: weight 3 ÷ weight 1"
    heavy, light = (sum(served[tenant] for served in shares) for tenant in ("steady-1", "flood"))
    made.append(ratio_row(metric, "tokens", heavy, "three times as much", 3 * light, goals.get(metric)))
    metric = "refused requests of the steady tenants: fair"
    refused = sum(runs["fair"].refused.get(tenant, 0) for runs in found for tenant in STEADY)
    made.append(value_row(metric, "requests", refused, goals.get(metric)))
    return made


def main(arguments: list[str]) -> int:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(description="Fairness between tenants, and isolation of their caches.")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--out", type=Path, default=Path("out/bench/fairness.json"))
    given = parser.parse_args(arguments)
    goals = load_goals(_NAME)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    with ProcessPoolExecutor(max_workers=2) as pool:
        found = list(pool.map(partial(simulate_seed, given.seconds), seeds))
    write_results(_NAME, rows(found, goals) + cache_timing.rows(goals), seed=seeds[0], file=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
