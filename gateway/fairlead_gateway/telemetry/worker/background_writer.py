"""Batches for a receiver outside the process, written by a thread of their own.

The event loop never waits for a log file, a pipe or a collector. The queue is short, since old
lines are worth less than the memory of requests. What does not fit is dropped and counted.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
_log = logging.getLogger("fairlead.gateway")


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """The bounds of a writer's queue and of its batches.

    gather_seconds: the time between the first item and its batch.
    """

    max_waiting: int
    max_batch: int = 1_000
    gather_seconds: float = 0.02


class BackgroundWriter(Generic[T]):
    """A writer of items in batches, in a thread that starts with the first item.

    write: writes a batch, in the thread; if it raises, the batch is lost.
    on_dropped: called with the number of lost items, from any thread.
    stopping: set when `write` should not wait any longer.

    The attribute `warning` says why the last batch was lost; None if it was not.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[list[T]], None],
        bounds: QueueBounds,
        *,
        on_dropped: Callable[[int], None],
        stopping: threading.Event | None = None,
    ) -> None:
        self._name = name
        self._write = write
        self._bounds = bounds
        self._on_dropped = on_dropped
        self._waiting: deque[T] = deque()
        self._wake = threading.Event()
        self._stopping = stopping or threading.Event()
        self._thread: threading.Thread | None = None
        self.warning: str | None = None

    def offer(self, *items: T) -> None:
        """Queues the items; drops them all if too many are queued already."""
        if len(self._waiting) + len(items) > self._bounds.max_waiting:
            self._on_dropped(len(items))
            return
        self._waiting.extend(items)
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def close(self, seconds: float) -> None:
        """Writes what is queued, for that many seconds at most; the rest is lost."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._stopping.wait(self._bounds.gather_seconds)
            self._wake.clear()  # first, so that items offered from here on wake the thread again
            is_last = self._stopping.is_set()
            while self._waiting:
                count = min(self._bounds.max_batch, len(self._waiting))
                self._write_batch([self._waiting.popleft() for _ in range(count)])
            if is_last:
                return

    def _write_batch(self, batch: list[T]) -> None:
        try:
            self._write(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, requests go on and the thread lives
            self._on_dropped(len(batch))
            is_first, self.warning = (
                self.warning is None,
                f"{self._name}: {_describe(error)}; what cannot be handed over is dropped",
            )
            if is_first:
                _log.warning("%s", self.warning)
        else:
            self.warning = None


def _describe(error: Exception) -> str:
    """Returns the type of an error, with its text if the system wrote it.

    Why: other texts may hold what should not be logged.
    """
    name = type(error).__name__
    return f"{name}: {error.strerror}" if isinstance(error, OSError) and error.strerror else name
