"""The fair scheduler of the reader: engines are read in turn, each for its share, so that a flood
does not delay others.

This is deficit round robin (Shreedhar and Varghese, 1995) with bytes as the currency, since the
cost of a batch grows with its bytes. The sources with data form a ring. In its turn a source gets a
quantum and may read until that is spent. A batch larger than the remainder puts it into debt, which
its next turns pay off first. In the long run each source gets the same number of bytes, whatever
the batch sizes, and a quiet source owes nothing.

After some milliseconds, or bytes, the scheduler returns to the event loop. Timers, HTTP and writes
to Redis must not wait for the end of a flood. A write to Redis takes several iterations of the
loop, so each has to be short.
"""

import asyncio
from collections import deque
from typing import Final, Protocol

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock

KV_LOOP_SECONDS: Final = 0.004
"""Limit: the same in seconds, since a write to Redis takes several loop iterations."""

MESSAGE_OVERHEAD_BYTES = 256
"""The fixed cost of a message, in bytes."""


class ReadSource(Protocol):
    """The interface of a socket that the scheduler reads in turns."""

    def read(self, max_bytes: int) -> tuple[int, bool]:
        """Reads messages of about ``max_bytes``. Returns their cost in bytes, and whether there
        may be more. Never raises.
        """


class FairScheduler:
    """The scheduler of reads: a ring of sources that have data.

    limits: ``kv_turn_bytes`` is the quantum of a source; ``kv_loop_bytes`` or `KV_LOOP_SECONDS`
    end a round.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, limits: Limits) -> None:
        self._loop = loop
        self._clock = clock
        self._quantum = limits.kv_turn_bytes
        self._round_bytes = limits.kv_loop_bytes
        self._ring: deque[ReadSource] = deque()
        self._budgets: dict[ReadSource, int] = {}
        self._is_scheduled = False

    def mark_ready(self, source: ReadSource) -> None:
        """Adds a source that has data to read; repetition does no harm."""
        if source not in self._budgets:
            self._budgets[source] = 0
            self._ring.append(source)
        self._schedule_round()

    def remove(self, source: ReadSource) -> None:
        if self._budgets.pop(source, None) is not None:
            self._ring.remove(source)

    def _schedule_round(self) -> None:
        if self._ring and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._run_round)

    def _run_round(self) -> None:
        self._is_scheduled = False
        spent, now = 0, self._clock.now
        until = now() + KV_LOOP_SECONDS
        try:
            while self._ring and spent < self._round_bytes:
                spent += self._read_source(self._ring.popleft())
                if now() >= until:
                    break
        finally:
            self._schedule_round()

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
