"""Limits of Fairlead, LiteLLM, AIBrix and Envoy AI Gateway: their accuracy and cost.

Simulated: Fairlead's own gates and services, and presets of the others, on the same traffic.
Over loopback: gateways of Fairlead and proxies of LiteLLM with one real Redis, in real minutes.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from fairlead_bench.gateway.peer_installation import PeerUnavailable
from fairlead_bench.quota.accuracy import (
    ESTIMATED,
    PRODUCTS,
    STRICT,
    Accuracy,
    AdmittedRequests,
    accuracy,
    can_serve,
    play,
)
from fairlead_bench.quota.loopback_cost import COST_TENANTS, LimitCost, limit_cost
from fairlead_bench.quota.loopback_traffic import answering_engine, calendar_starts, numbered_requests, send_all
from fairlead_bench.quota.product_processes import (
    PEPPER,
    ProductProcesses,
    fairlead_processes,
    litellm_processes,
    redis_server,
)
from fairlead_bench.quota.tenant_traffic import WINDOW_SECONDS, TenantLimits, TrafficCase
from fairlead_bench.results import MapFunction, ResultRow, ratio_row, value_row
from fairlead_testing.redis.valkey_cluster import ValkeyNode

FAIRLEAD, LITELLM = ESTIMATED, "litellm"
SIMULATED_WINDOWS = 8
CASES = (
    TrafficCase("requests", TenantLimits(requests=600), 1_200),
    TrafficCase("tokens", TenantLimits(tokens=200_000), 1_000),
    TrafficCase("tokens, max_tokens 1,000", TenantLimits(tokens=200_000), 1_000, max_tokens=1_000),
    TrafficCase("tokens, a small tenant", TenantLimits(tokens=30_000), 150),
    TrafficCase("requests and tokens", TenantLimits(requests=600, tokens=200_000), 1_000),
    TrafficCase("budget", TenantLimits(budget=1_800_000_000), 1_000),
    TrafficCase("budget, max_tokens 1,000", TenantLimits(budget=1_800_000_000), 1_000, max_tokens=1_000),
    TrafficCase("budget, a small tenant", TenantLimits(budget=270_000_000), 150),
)
"""Each tenant wants about twice what its limits allow."""
LOOPBACK_CASES = (
    TrafficCase("requests", TenantLimits(requests=60), 120),
    TrafficCase("tokens", TenantLimits(tokens=30_000), 150),
    TrafficCase("tokens, max_tokens 1,000", TenantLimits(tokens=30_000), 150, max_tokens=1_000),
    TrafficCase("requests and tokens", TenantLimits(requests=90, tokens=30_000), 150),
)
_STRICT_CASE = LOOPBACK_CASES[2]
_COST_REQUESTS = {FAIRLEAD: 4_000, LITELLM: 300}
_COST_ROUNDS = {FAIRLEAD: 32, LITELLM: 8}


@dataclass(slots=True)
class Comparison:
    """The measured values: by case and product, over all seeds."""

    simulated: dict[tuple[str, str], list[Accuracy]] = field(default_factory=dict)
    loopback: dict[tuple[str, str], list[Accuracy]] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    costs: dict[str, LimitCost] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def simulated(seeds: Sequence[int], windows: int, mapped: MapFunction = map) -> dict[tuple[str, str], list[Accuracy]]:
    """Returns the accuracy of every product in every case."""
    jobs = [
        (case, product, seed, windows)
        for case in CASES
        for product in PRODUCTS
        if can_serve(product, case)
        for seed in seeds
    ]
    found: dict[tuple[str, str], list[Accuracy]] = {}
    for (case, product, _, _), one in zip(jobs, mapped(_simulate, jobs), strict=True):
        found.setdefault((case.name, product), []).append(one)
    return found


def _simulate(job: tuple[TrafficCase, str, int, int]) -> Accuracy:
    case, product, seed, windows = job
    return accuracy(play(product, case, windows, seed), case.limits, windows)


Starter = Callable[[str, ValkeyNode, Path], AbstractAsyncContextManager[ProductProcesses]]


def _starters(tenants: Mapping[str, TenantLimits], strict: frozenset[str]) -> dict[str, Starter]:
    return {
        FAIRLEAD: lambda engine, redis, folder: fairlead_processes(tenants, strict, engine, redis, folder),
        LITELLM: lambda engine, redis, folder: litellm_processes(tenants, engine, redis, folder),
    }


async def over_loopback(windows: int, seed: int, found: Comparison) -> None:
    """Sends the same traffic to real gateways of all products in the same minutes.

    So what else runs on the machine slows all of them down.
    """
    cases = {f"tenant-{number}": case for number, case in enumerate(LOOPBACK_CASES)}
    starters = _starters({tenant: case.limits for tenant, case in cases.items()}, frozenset())
    strict = {"tenant-strict": _STRICT_CASE}
    starters[STRICT] = _starters({"tenant-strict": _STRICT_CASE.limits}, frozenset(strict))[FAIRLEAD]
    os.environ["FAIRLEAD_KEY_PEPPER"] = PEPPER
    products = {name: strict if name == STRICT else cases for name in starters}
    runs = [_run_loopback(starters[name], used, windows, seed) for name, used in products.items()]
    for (name, used), got in zip(products.items(), await asyncio.gather(*runs, return_exceptions=True), strict=True):
        if isinstance(got, PeerUnavailable):
            found.absent.append(f"{name}: {got}")
            continue
        if isinstance(got, BaseException):
            raise got
        for tenant, case in used.items():
            found.loopback.setdefault((case.name, name), []).append(accuracy(got[tenant], case.limits, windows))
            found.failed[name] = found.failed.get(name, 0) + got[tenant].failed


async def _run_loopback(
    start: Starter, cases: Mapping[str, TrafficCase], windows: int, seed: int
) -> dict[str, AdmittedRequests]:
    requests = numbered_requests(cases, (windows + 1) * WINDOW_SECONDS, seed)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            answering_engine(requests) as engine,
            redis_server(Path(folder)) as redis,
            start(engine.url, redis, Path(folder)) as running,
        ):
            got = await send_all(requests, running.urls, {tenant: running.key(tenant) for tenant in cases})
            for tenant, answers in got.items():
                answers.starts = running.starts(tenant) or calendar_starts(got)
            return got


async def costs(product: str) -> LimitCost:
    """Measures what limits cost a request in a product."""
    os.environ["FAIRLEAD_KEY_PEPPER"] = PEPPER
    with tempfile.TemporaryDirectory() as folder:
        async with (
            answering_engine(()) as engine,
            redis_server(Path(folder)) as redis,
            _starters(COST_TENANTS, frozenset())[product](engine.url, redis, Path(folder)) as running,
        ):
            return await limit_cost(running, redis.process.pid, _COST_REQUESTS[product], _COST_ROUNDS[product])


def measure(parts: Sequence[str], seeds: Sequence[int], windows: int, mapped: MapFunction = map) -> Comparison:
    """Measures the parts `simulated`, `loopback` and `cost`."""
    found = Comparison()
    if "simulated" in parts:
        found.simulated = simulated(seeds, SIMULATED_WINDOWS, mapped)
    if "loopback" in parts:
        asyncio.run(over_loopback(windows, seeds[0], found))
    for product in (FAIRLEAD, LITELLM) if "cost" in parts else ():
        try:
            found.costs[product] = asyncio.run(costs(product))
        except PeerUnavailable as error:
            found.absent.append(f"{product}: {error}")
    return found


def rows(found: Comparison, goals: Mapping[str, str]) -> list[ResultRow]:
    """Returns the rows of all parts that were measured."""
    made: list[ResultRow] = []
    for part, accuracies in (("simulated", found.simulated), ("over loopback", found.loopback)):
        for (case, product), values in accuracies.items():
            for name, share in _shares(values).items():
                made.append(value_row(f"{part}, {case}: {name}, %: {product}", "%", 100.0 * share, None))
        made += _differences(part, accuracies, goals)
    for product, failed in found.failed.items():
        metric = f"over loopback: requests that failed: {product}"
        made.append(value_row(metric, "requests", float(failed), goals.get(metric)))
    for product, cost in found.costs.items():
        for name, value in (("limits add", cost.added), ("without limits", cost.free)):
            metric = f"processor time of a request: {name}: {product}"
            made.append(value_row(metric, "µs", value, goals.get(metric)))
    if found.costs.keys() >= {FAIRLEAD, LITELLM}:
        # Rounds of LiteLLM differ by more than limits add, so whole requests are compared.
        metric = f"processor time of a request: with limits: Fairlead ÷ {LITELLM}"
        own, other = found.costs[FAIRLEAD].limited, found.costs[LITELLM].limited
        made.append(ratio_row(metric, "µs", own, LITELLM, other, goals.get(metric)))
    return made


def _shares(values: Sequence[Accuracy]) -> dict[str, float]:
    return {
        "over-run": fmean(one.overrun for one in values),
        "under-use": fmean(one.underuse for one in values),
        "all use": fmean(one.total for one in values),
    }


def _differences(
    part: str, accuracies: Mapping[tuple[str, str], Sequence[Accuracy]], goals: Mapping[str, str]
) -> list[ResultRow]:
    """Returns Fairlead's over-run and under-use less those of each other product."""
    made = []
    for (case, product), values in accuracies.items():
        if product in (FAIRLEAD, STRICT) or (case, FAIRLEAD) not in accuracies:
            continue
        own, other = _shares(accuracies[case, FAIRLEAD]), _shares(values)
        for name in ("over-run", "under-use"):
            metric = f"{part}, {case}: {name}: Fairlead − {product}, points"
            made.append(value_row(metric, "points", 100.0 * (own[name] - other[name]), goals.get(metric)))
    return made
