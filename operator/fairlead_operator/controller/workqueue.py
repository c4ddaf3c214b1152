"""What is to be reconciled: keys, each at most once at a time.

A key that is added twice is worked on once; one that is added while it is worked on comes again afterwards. A key whose work failed
comes again after a pause that doubles, half of it by chance, so that a thousand models do not knock together. ``Work`` is the rule,
without clock and loop; ``WorkQueue`` waits.
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
    """Which key is next. Times are monotonic seconds, handed in."""

    def __init__(self) -> None:
        self._ready: OrderedDict[str, None] = OrderedDict()
        self._running: set[str] = set()
        self._requeued: Counter[str] = Counter()
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._failures: dict[str, int] = {}

    @property
    def ready_count(self) -> int:
        """Keys that could be worked on now, were there a hand free."""
        return len(self._ready)

    @property
    def running_count(self) -> int:
        """Keys that are worked on."""
        return len(self._running)

    @property
    def delayed_count(self) -> int:
        """Keys that wait for their time."""
        return len(self._due)

    def failures(self, key: str) -> int:
        """How often in a row the work on ``key`` failed."""
        return self._failures.get(key, 0)

    def add(self, key: str) -> None:
        """There is news of ``key``. A pause that it waits in ends."""
        self._due.pop(key, None)
        if key in self._running:
            self._requeued[key] += 1
        else:
            self._ready[key] = None

    def ignore_self_event(self, key: str) -> None:
        """One piece of the news that came while ``key`` was worked on was that very work: the watch was faster than the answer."""
        self._requeued[key] -= 1
        if self._requeued[key] <= 0:
            del self._requeued[key]

    def add_at(self, key: str, at: float) -> None:
        """Look at ``key`` at the time ``at``, or before if it is to be looked at before anyway."""
        if key in self._ready or key in self._requeued or self._due.get(key, at + 1.0) <= at:
            return
        self._due[key] = at
        heapq.heappush(self._heap, (at, key))

    def get(self, now: float) -> str | None:
        """The next key, which is then being worked on until ``done``; None while there is none."""
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._due.get(key) == at:  # else it was added, or moved, meanwhile
                self.add(key)
        if not self._ready:
            return None
        key, _ = self._ready.popitem(last=False)
        self._running.add(key)
        return key

    def done(self, key: str) -> None:
        """The work on ``key`` is over, and all was well."""
        self._failures.pop(key, None)
        self._end(key)

    def retry(self, key: str, now: float, chance: float) -> float:
        """The work on ``key`` failed: again after the seconds that are returned. ``chance`` is drawn evenly from 0 to 1."""
        count = self._failures[key] = self.failures(key) + 1
        pause = min(MAX_DELAY_SECONDS, BASE_DELAY_SECONDS * 2.0 ** min(count - 1, 16)) * (0.5 + 0.5 * chance)
        self._requeued.pop(
            key, None
        )  # news does not shorten the pause, or a model that fails would never be left alone
        self._end(key)
        self.add_at(key, now + pause)
        return pause

    def forget(self, key: str) -> None:
        """``key`` is gone: nothing is remembered of it."""
        self._failures.pop(key, None)
        self._due.pop(key, None)
        self._ready.pop(key, None)
        self._requeued.pop(key, None)

    def next_due_at(self) -> float | None:
        """When the first of those that wait is due; None while none waits."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _end(self, key: str) -> None:
        self._running.discard(key)
        if self._requeued.pop(key, 0):
            self._ready[key] = None


class WorkQueue:
    """``work`` with a clock and hands. ``chance`` draws evenly from 0 to 1; ``pause`` waits for seconds."""

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
        """There is news of ``key``."""
        self.keys.add(key)
        self._wakeup.set()

    def ignore_self_event(self, key: str) -> None:
        """What ``key`` was added for, once, is what its own work has just written."""
        self.keys.ignore_self_event(key)

    def add_after(self, key: str, seconds: float) -> None:
        """Look at ``key`` in so many seconds at the latest."""
        self.keys.add_at(key, self._clock.now() + seconds)
        self._wakeup.set()

    async def process(
        self,
        reconcile: Callable[[str], Awaitable[float | None]],
        workers: int,
        on_failure: Callable[[str, Exception, float], None],
    ) -> None:
        """Work with so many hands until cancelled. ``reconcile`` answers after how many seconds it wants to look again, if at all.

        What it raises is told to ``failed`` with the pause until the next attempt, and ends nothing.
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
                again = await reconcile(key)
            except Exception as error:  # noqa: BLE001  # one model's trouble must not end the work on the others
                on_failure(key, error, self.keys.retry(key, self._clock.now(), self._chance()))
            else:
                self.keys.done(key)
                if again is not None:
                    self.add_after(key, again)
            self._wakeup.set()

    async def _wait_for_key(self) -> None:
        """Until there is news, or something is due."""
        self._wakeup.clear()
        at = self.keys.next_due_at()
        news = asyncio.ensure_future(self._wakeup.wait())
        timer = None if at is None else asyncio.ensure_future(self._pause(max(0.0, at - self._clock.now())))
        try:
            await asyncio.wait({news} if timer is None else {news, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(news)
            await cancel_and_wait(timer)
