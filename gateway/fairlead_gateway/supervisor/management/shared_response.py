"""A response that concurrent requests share, and whose computation takes a bounded share of time.

Why: the open paths need no token, and each response queries all workers. With 4,096 instances that
takes milliseconds of each worker. A flood of such requests would leave no time for clients.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")
BURST_SECONDS: Final = 1.0
TIME_SHARE: Final = 0.1
MAX_CHARGED_SECONDS: Final = 0.1


class SharedResponse(Generic[T]):
    """The response of one open path.

    Requests that come during a computation get its result. It ends when all of their clients have
    left. Computations may take `TIME_SHARE` of the time, and `BURST_SECONDS` at once. Beyond, the
    last response is sent again. A computation that takes longer than `MAX_CHARGED_SECONDS` waits
    for a worker rather than for a processor, so no more of it counts. Else one hung worker would
    make the responses of the next ten seconds old.

    now: monotonic seconds.
    """

    def __init__(self, compute: Callable[[], Awaitable[T]], now: Callable[[], float]) -> None:
        self._compute = compute
        self._now = now
        self._last: T | None = None
        self._running: asyncio.Task[T] | None = None
        self._waiting_count = 0
        self._left_seconds = BURST_SECONDS
        self._refilled_at = now()

    async def get(self) -> T:
        """Returns the response. Raises what its computation raises."""
        if self._running is None:
            if self._last is not None and self._refill() <= 0.0:
                return self._last
            self._running, self._waiting_count = asyncio.create_task(self._run()), 0
        running = self._running
        self._waiting_count += 1
        try:
            return await asyncio.shield(running)  # other requests wait for it too
        except asyncio.CancelledError:
            if self._running is running and self._waiting_count == 1:
                self._running = None
                running.cancel()
            raise
        finally:
            if self._running is running:
                self._waiting_count -= 1

    def _refill(self) -> float:
        now = self._now()
        gained = TIME_SHARE * max(0.0, now - self._refilled_at)
        self._left_seconds, self._refilled_at = min(BURST_SECONDS, self._left_seconds + gained), now
        return self._left_seconds

    async def _run(self) -> T:
        started_at = self._now()
        try:
            self._last = await self._compute()
            return self._last
        finally:
            if self._running is asyncio.current_task():
                self._running = None
            self._refill()
            self._left_seconds -= min(MAX_CHARGED_SECONDS, max(0.0, self._now() - started_at))
