"""The accuracy of a limiter: over-run and under-use of a limit, in simulated time.

- Over-run: what a window used beyond the limit, as a share of the limit, on average.
- Under-use: the share of the limit that was not used in the time of the run, though the tenant
  always wanted more.

Each product has its own windows, and it may count a request in the window in which it was admitted,
or in which it ended. The better of both counts. A budget has one window, the whole run.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fairlead_bench.quota.leased_limiter import LeasedLimiter
from fairlead_bench.quota.published_limiters import (
    AibrixLimiter,
    EnvoyLimiter,
    Limiter,
    LitellmBudget,
    LitellmLimiter,
)
from fairlead_bench.quota.tenant_traffic import (
    WINDOW_SECONDS,
    TenantLimits,
    TenantRequest,
    TrafficCase,
    tenant_requests,
)
from fairlead_testing.simulated.event_loop import SimulatedLoop

REPLICAS = 3
_WARM_UP_WINDOWS = 1
"""Not judged: the store is empty, and no answer was measured."""

ESTIMATED = "fairlead estimated"
STRICT = "fairlead strict"
LITELLM_PRESET = "litellm (preset)"
LimiterFactory = Callable[[TenantLimits, SimulatedLoop], Limiter]

PRODUCTS: dict[str, LimiterFactory] = {
    ESTIMATED: lambda limits, loop: LeasedLimiter(limits, loop, REPLICAS, is_strict=False),
    STRICT: lambda limits, loop: LeasedLimiter(limits, loop, REPLICAS, is_strict=True),
    "aibrix (preset)": lambda limits, loop: AibrixLimiter(limits, loop.wall),
    "envoy ai gateway (preset)": lambda limits, loop: EnvoyLimiter(limits, loop.wall),
    LITELLM_PRESET: lambda limits, loop: (LitellmLimiter if limits.budget is None else LitellmBudget)(
        limits, loop.wall
    ),
}


def can_serve(product: str, case: TrafficCase) -> bool:
    """Returns whether a product serves a case.

    Strict limits of tokens and strict budgets need `max_tokens`. Budgets are compared with those of
    LiteLLM.
    """
    if product == STRICT and case.max_tokens is None:
        return case.limits.tokens is None and case.limits.budget is None
    return case.limits.budget is None or product in (ESTIMATED, STRICT, LITELLM_PRESET)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of a limit: what was used beyond it, and what was left of it.

    total: all that was used, by what the limit allowed in the time of the run.
    """

    overrun: float
    underuse: float
    total: float


@dataclass(slots=True)
class AdmittedRequests:
    """Times and tokens of admitted requests, and the windows of the limiter; in Unix seconds.

    nano_usd: what all admitted requests cost, in billionths of a US dollar.
    """

    admitted: list[tuple[float, float, int]] = field(default_factory=list)
    nano_usd: int = 0
    starts: Sequence[float] = ()
    refused: int = 0
    failed: int = 0


def play(product: str, case: TrafficCase, windows: int, seed: int) -> AdmittedRequests:
    """Plays the traffic of a case through a limiter, in simulated time."""
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(_play(loop, product, case, windows, seed))
    finally:
        loop.close()


async def _play(loop: SimulatedLoop, product: str, case: TrafficCase, windows: int, seed: int) -> AdmittedRequests:
    limiter = PRODUCTS[product](case.limits, loop)
    found = AdmittedRequests()

    async def serve(request: TenantRequest) -> None:
        ticket = await limiter.admit(request)
        if ticket is None:
            found.refused += 1
            return
        admitted_at = loop.wall()
        await asyncio.sleep(request.seconds)
        await limiter.settle(request, ticket)
        found.admitted.append((admitted_at, loop.wall(), request.tokens))
        found.nano_usd += request.nano_usd

    first = (loop.wall() // WINDOW_SECONDS + 1) * WINDOW_SECONDS - loop.wall() + loop.time()
    tasks = []
    for request in tenant_requests(case, (windows + _WARM_UP_WINDOWS) * WINDOW_SECONDS, REPLICAS, seed):
        await asyncio.sleep(max(0.0, first + request.at - loop.time()))
        tasks.append(asyncio.create_task(serve(request)))
    await asyncio.gather(*tasks)
    await limiter.stop()
    found.starts = limiter.starts
    return found


def accuracy(found: AdmittedRequests, limits: TenantLimits, windows: int) -> Accuracy:
    """Returns the accuracy of the limit that binds, in all windows after the first one.

    With two limits, a window's use is that of the limit that is used more.
    """
    if limits.budget is not None:
        return _accuracy([found.nano_usd / limits.budget], windows=1)
    starts = list(found.starts)[_WARM_UP_WINDOWS:]
    begin = starts[0]
    end = begin + windows * WINDOW_SECONDS
    starts = [start for start in starts if start < end - WINDOW_SECONDS / 2]
    by_admission = _accuracy(_uses(found, limits, starts, end, by_end=False), windows)
    by_end = _accuracy(_uses(found, limits, starts, end, by_end=True), windows)
    return min(by_admission, by_end, key=lambda one: one.overrun + one.underuse)


def _uses(
    found: AdmittedRequests, limits: TenantLimits, starts: Sequence[float], end: float, *, by_end: bool
) -> list[float]:
    """Returns the used share of the limit in each window."""
    requests, tokens = [0] * len(starts), [0] * len(starts)
    for admitted_at, ended_at, used in found.admitted:
        at = ended_at if by_end else admitted_at
        number = bisect_right(starts, at) - 1
        if number >= 0 and at < end:
            requests[number] += 1
            tokens[number] += used
    shares = []
    for number in range(len(starts)):
        by_requests = 0.0 if limits.requests is None else requests[number] / limits.requests
        by_tokens = 0.0 if limits.tokens is None else tokens[number] / limits.tokens
        shares.append(max(by_requests, by_tokens))
    return shares


def _accuracy(shares: Sequence[float], windows: int) -> Accuracy:
    over = sum(max(0.0, share - 1.0) for share in shares) / windows
    kept = sum(min(1.0, share) for share in shares) / windows
    return Accuracy(over, max(0.0, 1.0 - kept), sum(shares) / windows)
