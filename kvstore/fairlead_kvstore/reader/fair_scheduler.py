"""Who is read next: engines in turn, each for its share, so that one that floods cannot keep the others waiting.

This is deficit round robin (Shreedhar and Varghese, 1995), with bytes as the currency, since what a batch costs grows with its bytes.
Whoever has something to read stands in a ring. At its turn it gets a quantum and may read until it is spent; a batch larger
than what was left puts it into debt, which its next turns pay off first. So in the long run each gets the same number of
bytes, whatever their sizes, and what is quiet owes nothing.

After some milliseconds, or bytes, the event loop is given back: timers, HTTP and writes to Redis must not wait for the end of a
flood either. A write to Redis takes several turns of the loop, so each of them has to be short. And whoever takes what was read may
say that it cannot follow (``behind``). Then nothing is read until it can: what waits lies in ZMQ's queues, and what an engine
drops meanwhile it can replay, which is cheaper than what a writer has to do that has lost its place.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_kvstore.reader.timers import ReaderLoop

MESSAGE_OVERHEAD_BYTES = 256
"""What a message costs besides its bytes."""


class ReadSource(Protocol):
    """Something that is read in turns."""

    def read(self, most: int) -> tuple[int, bool]:
        """Read messages of about ``most`` bytes: what they cost, and whether there may be more. Must not raise."""
        ...


class FairScheduler:
    """The ring. ``behind``: whether nothing is to be read for now; it is asked before every turn of the loop.

    Of ``limits``: ``kv_turn_bytes`` of one source, ``kv_loop_bytes`` or ``kv_loop_seconds`` after which the loop is given back.
    """

    def __init__(
        self, loop: ReaderLoop, clock: Clock, limits: Limits, *, is_backlogged: Callable[[], bool] = lambda: False
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._quantum = limits.kv_turn_bytes
        self._round_bytes = limits.kv_loop_bytes
        self._round_seconds = limits.kv_loop_seconds
        self._pause_seconds = limits.kv_backpressure_seconds
        self._is_backlogged = is_backlogged
        self._ring: deque[ReadSource] = deque()
        self._budgets: dict[ReadSource, int] = {}
        self._is_scheduled = False
        self.pauses = 0

    def __len__(self) -> int:
        """How many have something to read."""
        return len(self._budgets)

    def mark_ready(self, source: ReadSource) -> None:
        """``source`` has something to read; telling it again does no harm."""
        if source not in self._budgets:
            self._budgets[source] = 0
            self._ring.append(source)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._run_round)

    def remove(self, source: ReadSource) -> None:
        """It is closed."""
        if self._budgets.pop(source, None) is not None:
            self._ring.remove(source)

    def _run_round(self) -> None:
        self._is_scheduled = False
        if not self._ring:
            return
        if self._is_backlogged():
            self.pauses += 1
            self._is_scheduled = True
            self._loop.call_later(self._pause_seconds, self._run_round)
            return
        spent, now = 0, self._clock.now
        until = now() + self._round_seconds
        try:
            while self._ring and spent < self._round_bytes:
                spent += self._read_source(self._ring.popleft())
                if now() >= until:
                    break
        finally:
            if self._ring and not self._is_scheduled:
                self._is_scheduled = True
                self._loop.call_soon(self._run_round)

    def _read_source(self, source: ReadSource) -> int:
        """One turn of one source; what it cost."""
        self._ring.append(source)  # before it is read, since reading may close it
        budget = self._budgets[source] + self._quantum
        if budget <= 0:  # it still pays for a large batch
            self._budgets[source] = budget
            return MESSAGE_OVERHEAD_BYTES
        used, more = source.read(budget)
        if source in self._budgets:
            if more:
                self._budgets[source] = budget - used
            else:
                del self._budgets[source]
                self._ring.remove(source)
        return used
