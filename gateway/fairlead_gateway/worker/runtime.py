"""The runtime that all parts of a worker share: clock, limits and event loop."""

import asyncio
from collections.abc import Callable

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.worker.upstream.response_memory import ResponseMemory


class WorkerRuntime:
    """Clock, limits and event loop of one worker process.

    now: the clock's monotonic seconds.
    max_open_files: descriptors that the process may have; None if there is no limit.
    response_memory: for responses of engines that are not complete.

    Why: values that every part needs are one parameter. `now` is bound once, since a request
    reads the clock many times.
    """

    __slots__ = ("clock", "limits", "loop", "max_open_files", "now", "response_memory")

    def __init__(
        self, clock: Clock, limits: Limits, loop: asyncio.AbstractEventLoop, max_open_files: int | None = None
    ) -> None:
        self.clock = clock
        self.limits = limits
        self.loop = loop
        self.max_open_files = max_open_files
        self.response_memory = ResponseMemory(limits.buffered_responses_bytes)
        self.now: Callable[[], float] = clock.now
