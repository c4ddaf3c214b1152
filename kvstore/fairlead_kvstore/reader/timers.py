"""One-shot timers, and the interface of the event loop that the reader uses. An asyncio loop
implements it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock


class Timer(Protocol):
    """A scheduled call that can be cancelled."""

    def cancel(self) -> None:
        """Cancels the call; does nothing if it was made already."""


class ReaderLoop(Protocol):
    """The interface of the event loop that the reader needs; asyncio loops implement it."""

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Calls ``callback`` once, after ``delay`` seconds. The returned timer cancels the call."""

    def call_soon(self, callback: Callable[[], object], /) -> Timer:
        """Calls ``callback`` once, in the next iteration of the loop, unless it is cancelled."""

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> None:
        """Calls ``callback`` whenever ``fd`` becomes readable."""

    def remove_reader(self, fd: int, /) -> object:
        """Ends the calls that ``add_reader`` registered for ``fd``."""


@dataclass(frozen=True, slots=True)
class ReaderRuntime:
    """The event loop, clock, random source and limits of an indexer. ``random`` draws evenly from 0
    to 1.
    """

    loop: ReaderLoop
    clock: Clock
    random: Callable[[], float]
    limits: Limits


class OneShotTimer:
    """A timer that fires at most once; setting it again replaces the earlier call."""

    def __init__(self, loop: ReaderLoop) -> None:
        self._loop = loop
        self._timer: Timer | None = None

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
