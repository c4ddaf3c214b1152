"""The fair scheduler of the reader: engines are read in turn, each for its share, so that a flood
does not delay others.

This is deficit round robin (Shreedhar and Varghese, 1995) with bytes as the currency, since the
cost of a batch grows with its bytes. The sources with data form a ring. In its turn a source gets a
quantum and may read until that is spent. A batch larger than the remainder puts it into debt, which
its next turns pay off first. In the long run each source gets the same number of bytes, whatever
the batch sizes, and a quiet source owes nothing.

After some milliseconds, or bytes, the scheduler returns to the event loop. Timers, HTTP and writes
to Redis must not wait for the end of a flood. A write to Redis takes several iterations of the
loop, so each has to be short. A consumer that cannot follow a model reports the model as
backlogged, and then its engines are not read; those of other models are. Messages wait with the
engines, which can replay what they drop meanwhile. That costs less than a writer that must
begin a new epoch.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock

KV_LOOP_SECONDS: Final = 0.004
"""Limit: the same in seconds, since a write to Redis takes several loop iterations."""

MESSAGE_OVERHEAD_BYTES = 256
"""The fixed cost of a message, in bytes."""


class ReadSource(Protocol):
    """The interface of a socket that the scheduler reads in turns."""

    @property
    def model_key(self) -> str:
        """The model (``namespace/name``) of the engine behind the socket."""

    def read(self, max_bytes: int) -> tuple[int, bool]:
        """Reads messages of about ``max_bytes``. Returns their cost in bytes, and whether there
        may be more. Never raises.
        """


class FairScheduler:
    """The scheduler of reads: a ring of sources that have data.

    is_backlogged: called with a model before each turn of its sources; while it is true, they are
    paused.
    limits: ``kv_turn_bytes`` is the quantum of a source; ``kv_loop_bytes`` or `KV_LOOP_SECONDS`
    end a round.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        limits: Limits,
        *,
        is_backlogged: Callable[[str], bool] = lambda model_key: False,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._quantum = limits.kv_turn_bytes
        self._round_bytes = limits.kv_loop_bytes
        self._round_seconds = KV_LOOP_SECONDS
        self._pause_seconds = limits.kv_backpressure_seconds
        self._is_backlogged = is_backlogged
        self._ring: deque[ReadSource] = deque()
        self._budgets: dict[ReadSource, int] = {}
        self._paused: dict[str, dict[ReadSource, None]] = {}
        self._is_scheduled = False
        self._is_pause_scheduled = False

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
            paused = self._paused.get(source.model_key, {})
            if source in paused:
                del paused[source]
            else:
                self._ring.remove(source)

    def _run_round(self) -> None:
        self._is_scheduled = False
        if not self._ring:
            return
        spent, now = 0, self._clock.now
        until = now() + self._round_seconds
        try:
            while self._ring and spent < self._round_bytes:
                source = self._ring.popleft()
                if self._is_backlogged(source.model_key):
                    self._pause(source)
                    continue
                spent += self._read_source(source)
                if now() >= until:
                    break
        finally:
            if self._ring and not self._is_scheduled:
                self._is_scheduled = True
                self._loop.call_soon(self._run_round)

    def _pause(self, source: ReadSource) -> None:
        """Takes a source out of the ring until its model is not backlogged any more."""
        self._paused.setdefault(source.model_key, {})[source] = None
        if not self._is_pause_scheduled:
            self._is_pause_scheduled = True
            self._loop.call_later(self._pause_seconds, self._end_pauses)

    def _end_pauses(self) -> None:
        """Returns the sources of models that are not backlogged any more to the ring."""
        self._is_pause_scheduled = False
        for model_key in [key for key in self._paused if not self._is_backlogged(key)]:
            self._ring += self._paused.pop(model_key)
        if self._ring and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._run_round)
        if self._paused:
            self._is_pause_scheduled = True
            self._loop.call_later(self._pause_seconds, self._end_pauses)

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
