"""Clocks under a test's control, with matching replacements for `asyncio.sleep`."""

import asyncio
from collections.abc import Callable

from fairlead.runtime.clock import ManualClock
from fairlead_testing.waiting import wait_until


class FakeTime(ManualClock):
    """A clock whose `pause` replaces `asyncio.sleep`, and ends when the test advances the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self._due: list[tuple[float, asyncio.Future[None]]] = []

    async def pause(self, seconds: float) -> None:
        """Waits until the test has advanced the clock by `seconds`."""
        self.pauses.append(seconds)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = self.now() + seconds, future
        self._due.append(entry)
        try:
            await future
        finally:
            self._due.remove(entry)

    def advance(self, seconds: float) -> None:
        """Moves the clock, and ends the pauses that are over."""
        super().advance(seconds)
        for due, future in self._due:
            if due <= self.now() and not future.done():
                future.set_result(None)

    async def advance_until(self, condition: Callable[[], bool], below: float) -> None:
        """Ends pauses shorter than `below` one after the other, until `condition` holds."""

        def advance_one() -> bool:
            waiting = self.pending_pauses
            if waiting and waiting[0] < below:
                self.advance(waiting[0])
            return condition()

        await wait_until(advance_one)

    @property
    def pending_pauses(self) -> list[float]:
        """Remaining seconds of each pause."""
        return sorted(due - self.now() for due, future in self._due if not future.done())


class InstantTime(ManualClock):
    """A clock whose pauses move it and end at once. `pauses` records them."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    async def pause(self, seconds: float) -> None:
        """Advances the clock without waiting."""
        self.pauses.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)
