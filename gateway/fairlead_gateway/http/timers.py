"""Cheap timers: one per connection for idle times, one for all requests of equal timeout, and one
for a task."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from types import TracebackType


class IdleTimer:
    """A timer that is cheap to restart; calls `on_expired` once after an idle period.

    Why: a timer per request would be expensive. A restart leaves the armed timer alone if the new
    due time is later. If it fires too early, it is armed again.
    """

    __slots__ = ("_active", "_armed_until", "_due", "_handle", "_loop", "_now", "_on_expired")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_expired: Callable[[], None]) -> None:
        self._loop = loop
        self._now = loop.time
        self._on_expired = on_expired
        self._active = False
        self._due = 0.0
        self._handle: asyncio.TimerHandle | None = None
        self._armed_until = 0.0

    def restart(self, seconds: float) -> None:
        """Sets the due time to `seconds` from now."""
        due = self._due = self._now() + seconds
        self._active = True
        if self._handle is None:
            self._arm(due)
        elif self._armed_until > due:
            self._handle.cancel()
            self._arm(due)

    def pause(self) -> None:
        """Removes the due time. The armed timer remains and does nothing when it fires."""
        self._active = False

    def cancel(self) -> None:
        """Stops the timer and drops the callback, which is never called again."""
        self._active = False
        self._on_expired = _ignore
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, due: float) -> None:
        self._armed_until = due
        self._handle = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._handle = None
        if not self._active:
            return
        if self._now() < self._due - 0.001:
            self._arm(self._due)
            return
        self._active = False
        self._on_expired()


def _ignore() -> None:
    """Does nothing; the callback of a cancelled timer."""


class TimeoutEntry:
    """An entry of a `TimeoutQueue`. It links to its neighbours, so that removal is one step."""

    __slots__ = ("_due", "_newer", "_older")

    def __init__(self) -> None:
        self._due = 0.0
        self._older: TimeoutEntry | None = None
        self._newer: TimeoutEntry | None = None

    @abstractmethod
    def on_timeout(self) -> None:
        """Called once when the time of the entry is over."""


class TimeoutQueue:
    """Timeouts of equal length for many entries, with one timer: the oldest entry is the next to
    expire.

    seconds: the timeout of every entry.
    now: the monotonic clock, in seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, now: Callable[[], float]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._now = now
        self._oldest: TimeoutEntry | None = None
        self._newest: TimeoutEntry | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, entry: TimeoutEntry, started_at: float) -> None:
        """Adds an entry that started at `started_at`, which must not be before that of earlier
        entries.
        """
        entry._due = started_at + self._seconds
        older = entry._older = self._newest
        if older is None:
            self._oldest = entry
        else:
            older._newer = entry
        self._newest = entry
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._on_timer)

    def remove(self, entry: TimeoutEntry) -> None:
        """Removes an entry. Does nothing if it is not in the queue."""
        older, newer = entry._older, entry._newer
        if older is None and self._oldest is not entry:
            return
        entry._older = entry._newer = None
        if older is None:
            self._oldest = newer
        else:
            older._newer = newer
        if newer is None:
            self._newest = older
        else:
            newer._older = older

    def clear(self) -> None:
        """Removes all entries and stops the timer."""
        while self._oldest is not None:
            self.remove(self._oldest)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        now = self._now() + 0.001
        while self._oldest is not None:
            entry = self._oldest
            if entry._due > now:
                self._timer = self._loop.call_later(entry._due - now, self._on_timer)
                return
            self.remove(entry)
            entry.on_timeout()


class TaskDeadline:
    """A context manager that cancels the current task after `seconds` and turns this into
    TimeoutError.

    Another cancellation of the task passes as it is.

    Why not `asyncio.timeout`: it asks for the running loop three times, each of which is a system
    call (`getpid`), and its own code is interpreted.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._is_over = False
        self._cancelling = 0
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        task = self._task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a deadline belongs to a task")
        self._cancelling = task.cancelling()
        self._timer = self._loop.call_later(max(0.0, self._seconds), self._on_time)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, timer = self._task, self._timer
        self._task = self._timer = None
        if timer is not None:
            timer.cancel()
        if self._is_over and task is not None:
            is_last = task.uncancel() <= self._cancelling
            if is_last and isinstance(error, asyncio.CancelledError):
                raise TimeoutError from error

    def _on_time(self) -> None:
        if self._task is not None:
            self._is_over = True
            self._task.cancel()
