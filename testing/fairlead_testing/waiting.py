"""Waiting in asynchronous tests.

Clocks under a test's control, with matching replacements for `asyncio.sleep`.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fairlead.runtime.clock import ManualClock

PATIENCE_SECONDS = 120.0
_POLL_SECONDS = 0.005
_MAX_POLL_SECONDS = 0.05
_POLL_GROWTH = 1.1
"""Pauses grow, since most conditions that need half a second are requests to a process."""


async def wait_until(
    condition: Callable[[], bool | Awaitable[bool]],
    patience_seconds: float = PATIENCE_SECONDS,
    poll_seconds: float = _POLL_SECONDS,
    *,
    what: str = "",
) -> None:
    """Returns once other tasks have made `condition` true, which may be asynchronous. Raises
    AssertionError after `patience_seconds`, with `what` or else the source of the condition.
    """
    async with limited(
        patience_seconds, lambda: f"waited {patience_seconds:g} s in vain: {what or _describe(condition)}"
    ):
        while not await _truth(condition()):
            await asyncio.sleep(poll_seconds)
            poll_seconds = max(poll_seconds, min(poll_seconds * _POLL_GROWTH, _MAX_POLL_SECONDS))


async def _truth(value: bool | Awaitable[bool]) -> bool:
    return value if isinstance(value, bool) else await value


@asynccontextmanager
async def limited(seconds: float | None, describe: Callable[[], str]) -> AsyncIterator[None]:
    """Raises AssertionError with a text if the block takes longer.

    describe: called only then, since it may read a source.
    """
    try:
        async with asyncio.timeout(seconds) as timeout:
            yield
    except TimeoutError as error:
        if not timeout.expired():  # the block's own
            raise
        raise AssertionError(describe()) from error


def _describe(condition: Callable[[], object]) -> str:
    """Returns the source of a lambda in one line, or the name of another condition."""
    if not inspect.isfunction(condition):
        return repr(condition)
    if condition.__name__ != "<lambda>":
        return condition.__qualname__
    try:
        return " ".join(inspect.getsource(condition).split())
    except OSError:
        return repr(condition)


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
