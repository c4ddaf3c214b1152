"""Time that a test turns by hand: a clock, and pauses that end when the clock has come that far."""

import asyncio
from collections.abc import Callable

from fairlead.runtime.clock import ManualClock
from fairlead_testing.waiting import wait_until


class FakeTime(ManualClock):
    """A clock whose ``pause`` stands for ``asyncio.sleep`` in the parts under test."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self._due: list[tuple[float, asyncio.Future[None]]] = []

    async def pause(self, seconds: float) -> None:
        """Wait until the test has advanced the clock by so much."""
        self.pauses.append(seconds)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = self.now() + seconds, future
        self._due.append(entry)
        try:
            await future
        finally:
            self._due.remove(entry)

    def advance(self, seconds: float) -> None:
        """Move on; pauses that are over by then end."""
        super().advance(seconds)
        for due, future in self._due:
            if due <= self.now() and not future.done():
                future.set_result(None)

    async def advance_until(self, condition: Callable[[], bool], below: float) -> None:
        """Let one pause of less than ``below`` seconds after the other be over, until ``condition`` holds."""

        def turned() -> bool:
            waiting = self.pending_pauses
            if waiting and waiting[0] < below:
                self.advance(waiting[0])
            return condition()

        await wait_until(turned)

    @property
    def pending_pauses(self) -> list[float]:
        """How many seconds each present pause still has."""
        return sorted(due - self.now() for due, future in self._due if not future.done())


class InstantTime(ManualClock):
    """A clock whose pauses are over at once, having moved it; what they were stands in ``pauses``."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    async def pause(self, seconds: float) -> None:
        """Let the time pass without waiting for it."""
        self.pauses.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)
