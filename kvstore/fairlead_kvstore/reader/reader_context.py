"""The values and objects that all subscriptions of one indexer share, and one-shot timers."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.reader.buffered_bytes import BufferedBytes
from fairlead_kvstore.reader.event_application import AppliedEvents
from fairlead_kvstore.reader.fair_scheduler import FairScheduler
from fairlead_kvstore.reader.namespace_slots import NamespaceSlots


@dataclass(frozen=True, slots=True)
class ReaderRuntime:
    """The event loop, clock, random source and limits of an indexer. ``random`` draws evenly from 0
    to 1.
    """

    loop: asyncio.AbstractEventLoop
    clock: Clock
    random: Callable[[], float]
    limits: Limits


@dataclass(frozen=True, slots=True)
class ReaderContext:
    """The objects that all subscriptions of one indexer share.

    unread: bytes of all connections that no turn has read.
    on_applied: called with an instance and the result of applying messages of it; must neither
    block nor raise.
    random: draws evenly from 0 to 1.
    buffered: bytes of all engines that wait to be applied.
    """

    scheduler: FairScheduler
    loop: asyncio.AbstractEventLoop
    limits: Limits
    unread: BufferedBytes
    store: BlockStore
    on_applied: Callable[[str, AppliedEvents], None]
    replay_slots: NamespaceSlots
    clock: Clock
    random: Callable[[], float]
    buffered: BufferedBytes


class OneShotTimer:
    """A timer that fires at most once; setting it again replaces the earlier call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        """Whether the timer is set and has not fired."""
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
