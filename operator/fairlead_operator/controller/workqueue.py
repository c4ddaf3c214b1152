"""The work queue: keys of models to reconcile, each processed at most once at a time.

A key added twice is processed once; a key added during its processing is processed again. A failed
key returns after a pause that doubles and is half random, so that many models do not retry at the
same time. Namespaces take turns, and one leaves a worker free for the others: it may have any
number of models that change all the time. `RateLimitedQueue` holds the rules, without clock and
event loop; `WorkQueue` waits.
"""

import asyncio
import heapq
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable

from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import end_with_first

BASE_DELAY_SECONDS = 0.05
MAX_DELAY_SECONDS = 60.0


_SPARE_HEAP_ENTRIES = 1_024
"""Entries of rescheduled keys that may stay in the heap, besides one for each delayed key."""


class RateLimitedQueue:
    """The order of keys. Times are monotonic seconds, passed as arguments.

    A key is `namespace/name`.
    """

    def __init__(self) -> None:
        self._ready: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()
        """Ready keys by namespace; the namespace whose turn is next comes first."""
        self._running: set[str] = set()
        self._running_by_namespace: Counter[str] = Counter()
        self._requeued: Counter[str] = Counter()
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._failures: dict[str, int] = {}

    @property
    def ready_count(self) -> int:
        return sum(map(len, self._ready.values()))

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def delayed_count(self) -> int:
        return len(self._due)

    def failures(self, key: str) -> int:
        return self._failures.get(key, 0)

    def add(self, key: str) -> None:
        """Adds a key because of a change. This ends its delay."""
        self._due.pop(key, None)
        if key in self._running:
            self._requeued[key] += 1
        else:
            self._make_ready(key)

    def ignore_self_event(self, key: str) -> None:
        """Discounts one addition of a running key: the event of its own write, which came before
        the response.
        """
        self._requeued[key] -= 1
        if self._requeued[key] <= 0:
            del self._requeued[key]

    def add_at(self, key: str, at: float) -> None:
        """Schedules a key for time `at`, unless it is due before."""
        if self._is_ready(key) or key in self._requeued or self._due.get(key, at + 1.0) <= at:
            return
        self._due[key] = at
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 2 * len(self._due) + _SPARE_HEAP_ENTRIES:
            self._heap = [(due_at, due_key) for due_key, due_at in self._due.items()]
            heapq.heapify(self._heap)

    def get(self, now: float, most_of_namespace: int | None = None) -> str | None:
        """Returns the next key, which is then in progress until `done` or `retry`; None if there is
        none.

        most_of_namespace: how many keys of one namespace may be in progress; None: any number.
        """
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._due.get(key) == at:  # else it was added or rescheduled
                self.add(key)
        for namespace in self._ready:
            if most_of_namespace is None or self._running_by_namespace[namespace] < most_of_namespace:
                break
        else:
            return None
        keys = self._ready[namespace]
        key, _ = keys.popitem(last=False)
        self._ready.move_to_end(namespace)
        if not keys:
            del self._ready[namespace]
        self._running.add(key)
        self._running_by_namespace[namespace] += 1
        return key

    def done(self, key: str) -> None:
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
        self._requeued.pop(key, None)
        if self._is_ready(key):
            namespace = _namespace_of(key)
            del self._ready[namespace][key]
            if not self._ready[namespace]:
                del self._ready[namespace]

    def next_due_at(self) -> float | None:
        """Returns the time of the first delayed key; None if there is none."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _end(self, key: str) -> None:
        if key in self._running:
            self._running.discard(key)
            namespace = _namespace_of(key)
            self._running_by_namespace[namespace] -= 1
            if not self._running_by_namespace[namespace]:
                del self._running_by_namespace[namespace]
        if self._requeued.pop(key, 0):
            self._make_ready(key)

    def _make_ready(self, key: str) -> None:
        self._ready.setdefault(_namespace_of(key), OrderedDict())[key] = None

    def _is_ready(self, key: str) -> bool:
        return key in self._ready.get(_namespace_of(key), ())


def _namespace_of(key: str) -> str:
    return key.partition("/")[0]


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
        self.keys.add(key)
        self._wakeup.set()

    def ignore_self_event(self, key: str) -> None:
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
        """Runs `workers` workers until cancelled. One namespace takes all but one of them.

        reconcile: returns the seconds until the next pass, or None.
        on_failure: called with key, error and pause. An error ends nothing.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work_loop(max(1, workers - 1), reconcile, on_failure))

    async def _work_loop(
        self,
        most_of_namespace: int,
        reconcile: Callable[[str], Awaitable[float | None]],
        on_failure: Callable[[str, Exception, float], None],
    ) -> None:
        while True:
            key = self.keys.get(self._clock.now(), most_of_namespace)
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
        if due_at is None:
            await self._wakeup.wait()
        else:
            await end_with_first(self._wakeup.wait(), self._pause(max(0.0, due_at - self._clock.now())))
