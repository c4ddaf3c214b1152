"""The cost of limits: processor time of a gateway and of Redis, with limits and without.

Rounds alternate between two tenants of the same running gateway: one with limits that it never
reaches, one without. Nothing else differs.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import httpx

from fairlead_bench.gateway.process_usage import tree_usage
from fairlead_bench.quota.loopback_traffic import MODEL
from fairlead_bench.quota.product_processes import ProductProcesses
from fairlead_bench.quota.tenant_traffic import TenantLimits

COST_TENANTS = {"limited": TenantLimits(100_000_000, 10_000_000_000), "free": TenantLimits()}
_CLIENTS = 8


@dataclass(frozen=True, slots=True)
class LimitCost:
    """Microseconds of processor time of a request, of all processes: medians of rounds."""

    limited: float
    free: float

    @property
    def added(self) -> float:
        """The part that limits add."""
        return self.limited - self.free


async def limit_cost(product: ProductProcesses, redis_root: int, requests: int, rounds: int) -> LimitCost:
    """Returns the cost of one gateway of a product.

    requests: of each round.
    """
    found: dict[str, list[float]] = {tenant: [] for tenant in COST_TENANTS}
    roots = (product.roots[0], redis_root)
    limits = httpx.Limits(max_connections=_CLIENTS)
    async with httpx.AsyncClient(timeout=60, limits=limits, base_url=product.urls[0]) as client:
        for tenant in COST_TENANTS:
            await _round(client, product.key(tenant), max(1, requests // 4))
        for number in range(rounds):
            order = list(COST_TENANTS) if number % 2 else list(reversed(COST_TENANTS))
            for tenant in order:
                before = _cpu_seconds(roots)
                await _round(client, product.key(tenant), requests)
                found[tenant].append((_cpu_seconds(roots) - before) / requests * 1e6)
    return LimitCost(median(found["limited"]), median(found["free"]))


async def _round(client: httpx.AsyncClient, key: str, requests: int) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello " * 50}], "max_tokens": 20}
    headers = {"authorization": f"Bearer {key}"}
    numbers = iter(range(requests))

    async def send() -> None:
        for _ in numbers:
            answer = await client.post("/v1/chat/completions", json=body, headers=headers)
            if answer.status_code != 200:
                raise RuntimeError(f"a request of the cost round got {answer.status_code}: {answer.text[:200]}")

    await asyncio.gather(*(send() for _ in range(_CLIENTS)))


def _cpu_seconds(roots: Sequence[int]) -> float:
    return sum(tree_usage(root).cpu_seconds for root in roots)
