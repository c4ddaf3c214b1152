"""The values and objects that all subscriptions of one indexer share, and one-shot timers."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.reader.event_application import AppliedEvents
from fairlead_kvstore.reader.fair_scheduler import FairScheduler
from fairlead_kvstore.reader.namespace_slots import NamespaceSlots


class BufferedBytes:
    """Bytes that all engines of an indexer occupy, by namespace, and their bound.

    total: the bytes of all namespaces.

    Why: each engine has a bound of its own, some of 64 MiB, and any number of engines may reach it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._owners: dict[object, int] = {}
        self._namespaces: Counter[str] = Counter()
        self.total = 0

    def report(self, owner: object, namespace: str, size: int) -> None:
        """Takes the present bytes of an owner, which is a connection or a subscription."""
        change = size - self._owners.get(owner, 0)
        if not change:
            return
        self._owners[owner] = size
        if not size:
            del self._owners[owner]
        self.total += change
        self._namespaces[namespace] += change
        if not self._namespaces[namespace]:
            del self._namespaces[namespace]

    def is_over(self, namespace: str) -> bool:
        """Returns whether a namespace may buffer no more.

        Then the bytes of all are above the bound, and it has the mean of all namespaces or more.
        """
        if self.total <= self._max_bytes:
            return False
        return self._namespaces[namespace] * len(self._namespaces) >= self.total


@dataclass(frozen=True, slots=True)
class ReaderRuntime:
    """The event loop, clock, random source and limits of an indexer. ``random`` draws evenly from 0
    to 1.
    """

    loop: asyncio.AbstractEventLoop
    clock: Clock
    random: Callable[[], float]
    limits: Limits


class ReaderContext:
    """The objects that all subscriptions of one indexer share.

    on_applied: called with an instance and the result of applying messages of it; must neither
    block nor raise.
    buffered: bytes of all engines that are unread, or wait to be applied.
    """

    def __init__(
        self, runtime: ReaderRuntime, store: BlockStore, on_applied: Callable[[str, AppliedEvents], None]
    ) -> None:
        self.loop = runtime.loop
        self.clock = runtime.clock
        self.random = runtime.random
        self.limits = runtime.limits
        self.store = store
        self.on_applied = on_applied
        self.scheduler = FairScheduler(runtime.loop, runtime.clock, runtime.limits)
        self.replay_slots = NamespaceSlots(runtime.limits.kv_replays)
        self.buffered = BufferedBytes(runtime.limits.kv_all_unread_bytes)


class OneShotTimer:
    """A timer that fires at most once; setting it again replaces the earlier call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self, seconds: float, callback: Callable[[], object]) -> None:
        """Schedules ``callback`` after ``seconds``."""
        self.clear()

        def fire() -> None:
            self._timer = None
            callback()

        self._timer = self._loop.call_later(seconds, fire)

    def clear(self) -> None:
        """Cancels the call."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
