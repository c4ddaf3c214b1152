"""Things that leave the process beside the request's way: taken at once, handed over in batches by a thread of their own.

The event loop never waits for a log file, a pipe or a collector. What cannot be handed over in time is dropped and counted: the
queue is short, since lines that nobody takes are worth less than the memory of requests. The thread begins with the first item.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_log = logging.getLogger("fairlead.gateway")


class BackgroundWriter(Generic[T]):
    """``write`` gets batches of at most ``batch`` items, in a thread; what it raises loses the batch. ``lost`` is told how many
    items were dropped, from any thread; ``gather_seconds`` pass between the first item and its batch. ``stopping`` is set when
    ``write`` should not wait any longer. ``problem`` says why the last batch was lost, None when it was not."""

    def __init__(
        self,
        name: str,
        write: Callable[[list[T]], None],
        *,
        max_waiting: int,
        on_dropped: Callable[[int], None],
        max_batch: int = 1_000,
        gather_seconds: float = 0.02,
        stopping: threading.Event | None = None,
    ) -> None:
        self._name = name
        self._write = write
        self._max_waiting = max_waiting
        self._on_dropped = on_dropped
        self._max_batch = max_batch
        self._gather_seconds = gather_seconds
        self._waiting: deque[T] = deque()
        self._wake = threading.Event()
        self._stopping = stopping or threading.Event()
        self._thread: threading.Thread | None = None
        self.warning: str | None = None

    def offer(self, *items: T) -> None:
        """Take them, or drop them together when too many wait already."""
        if len(self._waiting) + len(items) > self._max_waiting:
            self._on_dropped(len(items))
            return
        self._waiting.extend(items)
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def close(self, seconds: float) -> None:
        """Hand over what waits, for at most ``seconds``; what a stuck receiver has not taken by then is lost."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._stopping.wait(self._gather_seconds)
            self._wake.clear()  # before looking: what is offered from here on wakes us again
            ending = self._stopping.is_set()
            while self._waiting:
                self._write_batch([self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))])
            if ending:
                return

    def _write_batch(self, batch: list[T]) -> None:
        try:
            self._write(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, requests go on and the thread lives
            self._on_dropped(len(batch))
            known, self.warning = (
                self.warning,
                f"{self._name}: {_describe(error)}; what cannot be handed over is dropped",
            )
            if known is None:
                _log.warning("%s", self.warning)
        else:
            self.warning = None


def _describe(error: Exception) -> str:
    """The kind of an error and, of the system's errors, its text; other texts may hold what should not be logged."""
    return (
        f"{type(error).__name__}: {error.strerror}"
        if isinstance(error, OSError) and error.strerror
        else type(error).__name__
    )
