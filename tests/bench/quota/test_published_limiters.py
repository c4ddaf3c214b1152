"""The presets of other limiters do what their source does, also where that is wrong."""

import asyncio
from collections.abc import Awaitable, Callable

from fairlead_bench.quota.accuracy import (
    AibrixLimiter,
    EnvoyLimiter,
    Limiter,
    LitellmBudget,
    LitellmLimiter,
    TenantLimits,
    TenantRequest,
)
from fairlead_testing.simulated.event_loop import SimulatedLoop

_LARGE = TenantRequest(0.0, 0, 400, 100, 900, 1_000)


def _run(work: Callable[[SimulatedLoop], Awaitable[None]]) -> None:
    loop = SimulatedLoop()
    try:
        loop.run_until_complete(_begin(loop, work))
    finally:
        loop.close()


async def _begin(loop: SimulatedLoop, work: Callable[[SimulatedLoop], Awaitable[None]]) -> None:
    await asyncio.sleep(60 - loop.wall() % 60 + 1)
    await work(loop)


async def _admitted(limiter: Limiter, count: int, request: TenantRequest = _LARGE) -> int:
    tickets = [await limiter.admit(request) for _ in range(count)]
    return sum(ticket is not None for ticket in tickets)


def test_post_paid_limiters_admit_whatever_comes_before_an_answer_has_ended() -> None:
    async def work(loop: SimulatedLoop) -> None:
        for kind in (AibrixLimiter, EnvoyLimiter):
            limiter = kind(TenantLimits(tokens=2_000), loop.wall)
            assert await _admitted(limiter, 10) == 10
            for _ in range(3):
                await limiter.settle(_LARGE, True)
            assert await _admitted(limiter, 1) == 0

    _run(work)


def test_requests_that_come_at_once_pass_aibrix_between_reading_and_counting() -> None:
    async def work(loop: SimulatedLoop) -> None:
        limits = TenantLimits(requests=3)
        for kind, expected in ((AibrixLimiter, 8), (EnvoyLimiter, 3), (LitellmLimiter, 3)):
            limiter = kind(limits, loop.wall)
            tickets = await asyncio.gather(*(limiter.admit(_LARGE) for _ in range(8)))
            assert sum(ticket is not None for ticket in tickets) == expected

    _run(work)


def test_refused_tokens_use_up_the_limit_of_requests() -> None:
    async def work(loop: SimulatedLoop) -> None:
        for kind in (AibrixLimiter, EnvoyLimiter, LitellmLimiter):
            limiter = kind(TenantLimits(requests=10, tokens=1_100), loop.wall)
            assert await _admitted(limiter, 1) == 1
            await limiter.settle(TenantRequest(0.0, 0, 400, 100, 1_100, 1_000), 1_100)
            assert await _admitted(limiter, 12) == 0
            number = int(loop.wall() // 60)
            counts = [limiter.redis.get(key) or 0 for key in ("requests", f"rpm{number}", f"rpm{number % 64}")]
            assert max(counts) >= 10

    _run(work)


def test_litellm_reserves_the_most_and_gives_the_rest_back() -> None:
    async def work(loop: SimulatedLoop) -> None:
        limiter = LitellmLimiter(TenantLimits(tokens=2_500), loop.wall)
        assert await _admitted(limiter, 3) == 2
        await limiter.settle(TenantRequest(0.0, 0, 400, 50, 50, 1_000), 1_100)
        assert await _admitted(limiter, 2) == 1

    _run(work)


def test_a_refund_of_litellm_goes_to_the_window_in_which_the_answer_ends() -> None:
    async def work(loop: SimulatedLoop) -> None:
        limiter = LitellmLimiter(TenantLimits(tokens=2_200), loop.wall)
        assert await _admitted(limiter, 3) == 2
        await asyncio.sleep(61)
        assert await _admitted(limiter, 1) == 1
        for _ in range(2):
            await limiter.settle(TenantRequest(0.0, 0, 400, 50, 50, 1_000), 1_100)
        assert await _admitted(limiter, 4) == 2  # 3,300 tokens of a limit of 2,200
        assert len(limiter.starts) == 2

    _run(work)


def test_one_request_without_max_tokens_may_hold_all_of_a_budget_of_litellm() -> None:
    async def work(loop: SimulatedLoop) -> None:
        limiter = LitellmBudget(TenantLimits(budget=3_000_000), loop.wall)
        request = TenantRequest(0.0, 0, 400, 100, 900, None)
        ticket = await limiter.admit(request)
        assert ticket == 3_000_000
        assert await _admitted(limiter, 3, request) == 0
        assert limiter.spent == 3_000_000
        await limiter.settle(request, ticket)
        assert limiter.spent == request.nano_usd
        assert await _admitted(limiter, 1, request) == 1

    _run(work)


def test_a_budget_of_litellm_is_exceeded_by_what_does_not_fit() -> None:
    async def work(loop: SimulatedLoop) -> None:
        limiter = LitellmBudget(TenantLimits(budget=1_000_000), loop.wall)
        ticket = await limiter.admit(_LARGE)
        assert ticket == 1_000_000
        await limiter.settle(_LARGE, ticket)
        assert limiter.spent == _LARGE.nano_usd == 1_400_000

    _run(work)
