"""The fair scheduler of the reader: engines are read in turn, each for its share, so that a flood
does not delay others.

This is deficit round robin (Shreedhar and Varghese, 1995) with bytes as the currency, since the
cost of a batch grows with its bytes. The sources with data form a ring. In its turn a source gets a
quantum and may read until that is spent. A batch larger than the remainder puts it into debt, which
its next turns pay off first. In the long run each source gets the same number of bytes, whatever
the batch sizes, and a quiet source owes nothing.

After some milliseconds, or bytes, the scheduler returns to the event loop. A consumer that cannot
follow reports itself as backlogged, and then nothing is read. Messages wait in ZMQ's queues, and an
engine can replay what it drops meanwhile.

Why: timers, HTTP and writes to Redis must not wait for the end of a flood. A write to Redis takes
several iterations of the loop, so each has to be short. Replays cost less than a writer that must
begin a new epoch.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_kvstore.reader.timers import ReaderLoop

MESSAGE_OVERHEAD_BYTES = 256
"""The fixed cost of a message, in bytes."""


class ReadSource(Protocol):
    """The interface of a socket that the scheduler reads in turns."""

    def read(self, most: int) -> tuple[int, bool]:
        """Reads messages of about ``most`` bytes. Returns their cost in bytes, and whether there
        may be more. Never raises.
        """
        ...


class FairScheduler:
    """The scheduler of reads: a ring of sources that have data.

    is_backlogged: called before every round; while it is true, nothing is read.
    limits: ``kv_turn_bytes`` is the quantum of a source; ``kv_loop_bytes`` or ``kv_loop_seconds``
    end a round.
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
        """Returns how many sources have data to read."""
        return len(self._budgets)

    def mark_ready(self, source: ReadSource) -> None:
        """Adds a source that has data to read; repetition does no harm."""
        if source not in self._budgets:
            self._budgets[source] = 0
            self._ring.append(source)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._run_round)

    def remove(self, source: ReadSource) -> None:
        """Removes a closed source."""
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
        """Reads from a source for one turn, and returns the cost in bytes."""
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
