"""The queue of large bodies before their check: a limit for each caller, and turns."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.errors import TooManyLargeBodies

T = TypeVar("T")


class LargeBodyQueue:
    """The queue of large bodies, and the thread that waits for the checking process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_bytes_of_caller: int) -> None:
        self._loop = loop
        self.limit = LargeBodyLimit(max_bytes_of_caller)
        self.turns = LargeBodyTurns()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")

    async def run(self, caller: CallerKey, size: int, check: Callable[[], T]) -> T:
        """Returns what `check` does in the thread, in the turn of the caller.

        Raises TooManyLargeBodies.
        """
        with self.limit.reserve(caller, size):
            async with self.turns.turn(caller):
                return await self._loop.run_in_executor(self.thread, check)

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)


class LargeBodyLimit:
    """The bytes of large bodies that wait to be checked, by caller.

    max_bytes: of one caller, all together; a single body is always accepted.

    Why: they take memory, and bodies are checked one after the other.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes: dict[CallerKey, int] = {}

    @contextmanager
    def reserve(self, caller: CallerKey, size: int) -> Iterator[None]:
        """Counts a body of `size` bytes while the block runs. Raises TooManyLargeBodies."""
        before = self._bytes.get(caller, 0)
        if before and before + size > self._max_bytes:
            raise TooManyLargeBodies()
        self._bytes[caller] = before + size
        try:
            yield
        finally:
            left = self._bytes[caller] - size
            if left:
                self._bytes[caller] = left
            else:
                del self._bytes[caller]

    def count_callers(self) -> int:
        return len(self._bytes)


class LargeBodyTurns:
    """The order in which large bodies are checked: one at a time, of each caller in turn.

    Why: 64 MiB of one caller take seconds. A body of another caller waits for one of them only.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._last = ANONYMOUS
        self._waiting: dict[CallerKey, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, caller: CallerKey) -> AsyncIterator[None]:
        """Waits until it is the caller's turn, and keeps it while the block runs."""
        if self._is_taken:
            await self._wait(caller)
        self._is_taken, self._last = True, caller
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, caller: CallerKey) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Gives the turn to the first waiting caller. Who had it goes behind the others."""
        self._is_taken = False
        if self._last in self._waiting:
            self._waiting[self._last] = self._waiting.pop(self._last)
        while self._waiting and not self._is_taken:
            caller, futures = next(iter(self._waiting.items()))
            while futures and futures[0].done():
                futures.popleft()  # its client has left
            if futures:
                futures.popleft().set_result(None)
                self._is_taken, self._last = True, caller
            if not futures:
                del self._waiting[caller]
