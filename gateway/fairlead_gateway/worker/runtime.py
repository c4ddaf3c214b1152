"""The runtime that all parts of a worker share: clock, limits and event loop."""

import asyncio
from collections.abc import Callable

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock


class WorkerRuntime:
    """Clock, limits and event loop of one worker process.

    now: the clock's monotonic seconds.

    Why: three values that every part needs are one parameter. `now` is bound once, since a request
    reads the clock many times.
    """

    __slots__ = ("clock", "limits", "loop", "now")

    def __init__(self, clock: Clock, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.clock = clock
        self.limits = limits
        self.loop = loop
        self.now: Callable[[], float] = clock.now
