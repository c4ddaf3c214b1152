"""Floods of requests for the open paths of the management port: they query the workers seldom."""

import asyncio
from itertools import count

import pytest

from fairlead.runtime.clock import ManualClock
from fairlead_gateway.supervisor.management.probes import BURST_SECONDS, TIME_SHARE, SharedResponse

COMPUTATION_SECONDS = 1 / 16


class SlowResponse:
    """A response whose computation takes some time; each is another number."""

    def __init__(self, clock: ManualClock, seconds: float = COMPUTATION_SECONDS) -> None:
        self._clock = clock
        self._seconds = seconds
        self._numbers = count()
        self.fails = False

    async def compute(self) -> int:
        number = next(self._numbers)
        await asyncio.sleep(0)
        self._clock.advance(self._seconds)
        if self.fails:
            raise LookupError("no worker")
        return number


async def test_flood_of_requests_without_a_token_takes_a_tenth_of_the_time() -> None:
    clock = ManualClock()
    shared = SharedResponse(SlowResponse(clock).compute, clock.now)
    computations = [await shared.get() for _ in range(1_000)]
    burst = computations[-1] + 1
    assert BURST_SECONDS <= burst * COMPUTATION_SECONDS <= BURST_SECONDS / (1 - TIME_SHARE) + COMPUTATION_SECONDS
    for _ in range(1_000):
        clock.advance(0.1)
        await shared.get()
    clock.advance(100.0)
    computed = await shared.get() - burst
    assert computed * COMPUTATION_SECONDS <= TIME_SHARE * 300.0 + BURST_SECONDS
    assert computed * COMPUTATION_SECONDS >= TIME_SHARE * 100.0 - BURST_SECONDS


async def test_requests_at_the_same_time_share_one_response() -> None:
    clock = ManualClock()
    shared = SharedResponse(SlowResponse(clock).compute, clock.now)
    assert await asyncio.gather(*[shared.get() for _ in range(100)]) == [0] * 100
    first, second = asyncio.create_task(shared.get()), asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 1, "a client that leaves ends no other's response"


async def test_response_that_failed_is_computed_again() -> None:
    clock = ManualClock()
    slow = SlowResponse(clock)
    shared = SharedResponse(slow.compute, clock.now)
    slow.fails = True
    with pytest.raises(LookupError):
        await shared.get()
    slow.fails = False
    assert await shared.get() == 1


async def test_a_worker_that_does_not_answer_makes_no_response_old() -> None:
    clock = ManualClock()
    shared = SharedResponse(SlowResponse(clock, seconds=2.0).compute, clock.now)
    for number in range(100):
        assert await shared.get() == number
        clock.advance(1.0)
