"""The work queue: keys of models to reconcile, each processed at most once at a time.

A key added twice is processed once; a key added during its processing is processed again. A failed
key returns after a pause that doubles and is half random, so that many models do not retry at the
same time. `RateLimitedQueue` holds the rules, without clock and event loop; `WorkQueue` waits.
"""

import asyncio
import heapq
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable

from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait

BASE_DELAY_SECONDS = 0.05
MAX_DELAY_SECONDS = 60.0


class RateLimitedQueue:
    """The order of keys. Times are monotonic seconds, passed as arguments."""

    def __init__(self) -> None:
        self._ready: OrderedDict[str, None] = OrderedDict()
        self._running: set[str] = set()
        self._requeued: Counter[str] = Counter()
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._failures: dict[str, int] = {}

    @property
    def ready_count(self) -> int:
        """The number of keys that wait for a free worker."""
        return len(self._ready)

    @property
    def running_count(self) -> int:
        """The number of keys in progress."""
        return len(self._running)

    @property
    def delayed_count(self) -> int:
        """The number of keys that wait for a point in time."""
        return len(self._due)

    def failures(self, key: str) -> int:
        """Returns the number of consecutive failures of `key`."""
        return self._failures.get(key, 0)

    def add(self, key: str) -> None:
        """Adds a key because of a change. This ends its delay."""
        self._due.pop(key, None)
        if key in self._running:
            self._requeued[key] += 1
        else:
            self._ready[key] = None

    def ignore_self_event(self, key: str) -> None:
        """Discounts one addition of a running key: the event of its own write, which came before
        the response.
        """
        self._requeued[key] -= 1
        if self._requeued[key] <= 0:
            del self._requeued[key]

    def add_at(self, key: str, at: float) -> None:
        """Schedules a key for time `at`, unless it is due before."""
        if key in self._ready or key in self._requeued or self._due.get(key, at + 1.0) <= at:
            return
        self._due[key] = at
        heapq.heappush(self._heap, (at, key))

    def get(self, now: float) -> str | None:
        """Returns the next key, which is then in progress until `done` or `retry`; None if there is
        none.
        """
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._due.get(key) == at:  # else it was added or rescheduled
                self.add(key)
        if not self._ready:
            return None
        key, _ = self._ready.popitem(last=False)
        self._running.add(key)
        return key

    def done(self, key: str) -> None:
        """Ends the processing of a key without error."""
        self._failures.pop(key, None)
        self._end(key)

    def retry(self, key: str, now: float, chance: float) -> float:
        """Ends the processing of a key with an error. Returns the seconds until the next attempt.

        chance: random number from 0 to 1.
        """
        count = self._failures[key] = self.failures(key) + 1
        pause = min(MAX_DELAY_SECONDS, BASE_DELAY_SECONDS * 2.0 ** min(count - 1, 16)) * (0.5 + 0.5 * chance)
        self._requeued.pop(key, None)  # changes do not shorten the pause of a failing model
        self._end(key)
        self.add_at(key, now + pause)
        return pause

    def forget(self, key: str) -> None:
        """Removes all state of a deleted key."""
        self._failures.pop(key, None)
        self._due.pop(key, None)
        self._ready.pop(key, None)
        self._requeued.pop(key, None)

    def next_due_at(self) -> float | None:
        """Returns the time of the first delayed key; None if there is none."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _end(self, key: str) -> None:
        self._running.discard(key)
        if self._requeued.pop(key, 0):
            self._ready[key] = None


class WorkQueue:
    """A RateLimitedQueue with a clock and workers.

    chance: returns a random number from 0 to 1.
    pause: sleeps for a number of seconds.
    """

    def __init__(
        self,
        clock: Clock,
        chance: Callable[[], float],
        *,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.keys = RateLimitedQueue()
        self._clock = clock
        self._chance = chance
        self._pause = pause
        self._wakeup = asyncio.Event()

    def add(self, key: str) -> None:
        """Adds a key because of a change."""
        self.keys.add(key)
        self._wakeup.set()

    def ignore_self_event(self, key: str) -> None:
        """Discounts one addition of a running key that was the event of its own write."""
        self.keys.ignore_self_event(key)

    def add_after(self, key: str, seconds: float) -> None:
        """Schedules a key, in `seconds` at the latest."""
        self.keys.add_at(key, self._clock.now() + seconds)
        self._wakeup.set()

    async def process(
        self,
        reconcile: Callable[[str], Awaitable[float | None]],
        workers: int,
        on_failure: Callable[[str, Exception, float], None],
    ) -> None:
        """Runs `workers` workers until cancelled.

        reconcile: returns the seconds until the next pass, or None.
        on_failure: called with key, error and pause. An error ends nothing.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work_loop(reconcile, on_failure))

    async def _work_loop(
        self,
        reconcile: Callable[[str], Awaitable[float | None]],
        on_failure: Callable[[str, Exception, float], None],
    ) -> None:
        while True:
            key = self.keys.get(self._clock.now())
            if key is None:
                await self._wait_for_key()
                continue
            try:
                delay = await reconcile(key)
            except Exception as error:  # noqa: BLE001  # one model must not stop the others
                on_failure(key, error, self.keys.retry(key, self._clock.now(), self._chance()))
            else:
                self.keys.done(key)
                if delay is not None:
                    self.add_after(key, delay)
            self._wakeup.set()

    async def _wait_for_key(self) -> None:
        """Waits for a change or a due key."""
        self._wakeup.clear()
        due_at = self.keys.next_due_at()
        wakeup = asyncio.ensure_future(self._wakeup.wait())
        timer = None if due_at is None else asyncio.ensure_future(self._pause(max(0.0, due_at - self._clock.now())))
        try:
            await asyncio.wait({wakeup} if timer is None else {wakeup, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(wakeup)
            await cancel_and_wait(timer)
