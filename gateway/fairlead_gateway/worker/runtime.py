"""The runtime that all parts of a worker share: clock, limits and event loop."""

import asyncio
from collections.abc import Callable

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock


class WorkerRuntime:
    """Clock, limits and event loop of one worker process.

    now: the clock's monotonic seconds.
    max_open_files: descriptors that the process may have; None if there is no limit.

    Why: values that every part needs are one parameter. `now` is bound once, since a request
    reads the clock many times.
    """

    __slots__ = ("clock", "limits", "loop", "max_open_files", "now")

    def __init__(
        self, clock: Clock, limits: Limits, loop: asyncio.AbstractEventLoop, max_open_files: int | None = None
    ) -> None:
        self.clock = clock
        self.limits = limits
        self.loop = loop
        self.max_open_files = max_open_files
        self.now: Callable[[], float] = clock.now
