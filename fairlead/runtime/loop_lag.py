"""Measures event-loop lag. If it is large, timings taken in this process are not reliable."""

import asyncio
from collections import deque


class LoopLag:
    """A periodic probe of event-loop lag. Keeps the last `max_samples` lags, in seconds."""

    def __init__(self, interval: float = 0.02, max_samples: int = 30_000) -> None:
        self._interval = interval
        self._lags: deque[float] = deque(maxlen=max_samples)
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = 0.0

    def start(self) -> None:
        """Starts measuring on the running loop."""
        loop = self._loop = asyncio.get_running_loop()  # kept, since asking is a system call
        self._due = loop.time() + self._interval
        self._handle = loop.call_at(self._due, self._wake)

    def stop(self) -> None:
        """Stops measuring. The samples stay readable."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def clear(self) -> None:
        self._lags.clear()

    def quantile(self, share: float) -> float | None:
        """Returns the lag in seconds that `share` of the samples do not exceed; None without
        samples.
        """
        if not self._lags:
            return None
        ordered = sorted(self._lags)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def _wake(self) -> None:
        loop = self._loop
        assert loop is not None
        now = loop.time()
        self._lags.append(max(0.0, now - self._due))
        self._due = now + self._interval
        self._handle = loop.call_at(self._due, self._wake)
