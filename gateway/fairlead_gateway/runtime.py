"""The runtime that all parts of a worker share: clock, limits and event loop.

The memory of a worker for parts of engines' responses that cannot be passed on yet.

A plain response is buffered until it is whole, and an event of a stream until its end. Each has a
limit of its own, and all together have one. Engines of one namespace have half of it.

Why: an engine could begin thousands of responses and complete none. Streams of others must still
have room for long events, and their engines are not to blame where it lacks.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.http.timers import PacedCalls

_MIN_COUNTED_BYTES: Final = 16_384
_MAX_NAMESPACE_SHARE: Final = 0.5


class ResponseMemory:
    """The buffered bytes of all unfinished responses of a worker."""

    __slots__ = ("_by_namespace", "max_bytes", "used_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._by_namespace: dict[str, int] = {}

    def add(self, namespace: str, size: int) -> None:
        """Adds bytes of an engine of this namespace; removes them if `size` is negative."""
        self.used_bytes += size
        used = self._by_namespace.get(namespace, 0) + size
        if used:
            self._by_namespace[namespace] = used
        else:
            self._by_namespace.pop(namespace, None)

    def is_full_for(self, namespace: str) -> bool:
        """Whether more is buffered than may be, of all engines or of those of this namespace."""
        return (
            self.used_bytes > self.max_bytes
            or self._by_namespace.get(namespace, 0) > _MAX_NAMESPACE_SHARE * self.max_bytes
        )


class BufferedBytes:
    """The part of one response in the memory of all.

    namespace: of the engine.
    """

    __slots__ = ("_counted_bytes", "_memory", "_namespace")

    def __init__(self, memory: ResponseMemory, namespace: str) -> None:
        self._memory = memory
        self._namespace = namespace
        self._counted_bytes = 0

    def set_size(self, size: int) -> bool:
        """Counts `size` bytes, unless they are few. Returns whether they are too many."""
        counted = size if size > _MIN_COUNTED_BYTES else 0
        if counted != self._counted_bytes:
            self._memory.add(self._namespace, counted - self._counted_bytes)
            self._counted_bytes = counted
        return counted > 0 and self._memory.is_full_for(self._namespace)


class WorkerRuntime:
    """Clock, limits and event loop of one worker process.

    now: the clock's monotonic seconds.
    ends: paces the ends of requests of which many can come together.
    count_detached_bytes: counts bytes of a caller's request that outlives its connection. Set by
        the gateway.
    max_open_files: descriptors that the process may have; None if there is no limit.
    response_memory: for responses of engines that are not complete.

    Why: values that every part needs are one parameter. `now` is bound once, since a request
    reads the clock many times.
    """

    __slots__ = (
        "clock",
        "count_detached_bytes",
        "ends",
        "limits",
        "loop",
        "max_open_files",
        "now",
        "response_memory",
    )

    def __init__(
        self, clock: Clock, limits: Limits, loop: asyncio.AbstractEventLoop, max_open_files: int | None = None
    ) -> None:
        self.clock = clock
        self.limits = limits
        self.loop = loop
        self.ends = PacedCalls(loop)
        self.count_detached_bytes: Callable[[CallerKey, int], None] = _ignore_bytes
        self.max_open_files = max_open_files
        self.response_memory = ResponseMemory(limits.buffered_responses_bytes)
        self.now: Callable[[], float] = clock.now


def _ignore_bytes(caller: CallerKey, change: int) -> None:
    del caller, change
