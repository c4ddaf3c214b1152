"""Cheap timers: for the idle times of connections, for all requests of equal timeout, and for a
task.

No turn of the event loop ends more than `MAX_ENDS_PER_TURN` requests of one kind. Why: one caller
can have thousands that end together, and streams of others would wait for all of them.
"""

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final

MAX_ENDS_PER_TURN: Final = 32
"""Limit: requests of one kind that end in one turn of the loop; an end takes 0.1 to 0.5 ms."""
_EARLY_SECONDS: Final = 0.001  # so much before its time, a timer may fire: a loop counts in milliseconds


class PacedCalls:
    """Calls of which at most `MAX_ENDS_PER_TURN` run in one turn of the event loop, in order.

    A call runs at once if the present turn has had fewer.
    """

    __slots__ = ("_calls", "_loop", "_started")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._started = 0  # in the present turn

    def run(self, call: Callable[[], object]) -> None:
        """Makes a call, now or in one of the next turns."""
        if self._started >= MAX_ENDS_PER_TURN:
            self._calls.append(call)
            return
        self._started += 1
        if self._started == 1:
            self._loop.call_soon(self._on_turn)
        call()

    def _on_turn(self) -> None:
        calls = self._calls
        started = self._started = min(len(calls), MAX_ENDS_PER_TURN)
        if started:
            self._loop.call_soon(self._on_turn)
        for _ in range(started):
            calls.popleft()()


class TimerQueue:
    """The idle timers of one event loop, in a binary heap with one timer of the loop.

    Why: a timer of the loop takes 0.6 KB of memory, and each open stream has two idle timers.
    """

    __slots__ = ("_armed_until", "_handle", "_heap", "_loop", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now: Callable[[], float] = loop.time  # bound once: each chunk of a stream reads it
        self._heap: list[IdleTimer] = []  # by `_armed_until`
        self._handle: asyncio.TimerHandle | None = None
        self._armed_until = 0.0

    def add(self, timer: "IdleTimer") -> None:
        self._heap.append(timer)
        self._move_up(timer, len(self._heap) - 1)

    def advance(self, timer: "IdleTimer") -> None:
        self._move_up(timer, timer._position)

    def remove(self, timer: "IdleTimer") -> None:
        """Removes a timer. Does nothing if it is not in the queue."""
        position = timer._position
        if position < 0:
            return
        timer._position = -1
        last = self._heap.pop()
        if last is not timer:
            self._move_down(last, position)
            self._move_up(last, last._position)

    def _move_up(self, timer: "IdleTimer", position: int) -> None:
        heap, due = self._heap, timer._armed_until
        while position > 0:
            parent = (position - 1) >> 1
            other = heap[parent]
            if other._armed_until <= due:
                break
            heap[position] = other
            other._position = position
            position = parent
        heap[position] = timer
        timer._position = position
        if position == 0:
            self._arm(due)

    def _move_down(self, timer: "IdleTimer", position: int) -> None:
        heap, due = self._heap, timer._armed_until
        while True:
            child = 2 * position + 1
            if child >= len(heap):
                break
            if child + 1 < len(heap) and heap[child + 1]._armed_until < heap[child]._armed_until:
                child += 1
            other = heap[child]
            if other._armed_until >= due:
                break
            heap[position] = other
            other._position = position
            position = child
        heap[position] = timer
        timer._position = position

    def _arm(self, due: float) -> None:
        """Makes the timer of the loop fire at `due`, or earlier if it does so already."""
        if self._handle is not None:
            if self._armed_until <= due:
                return
            self._handle.cancel()
        self._armed_until = due
        self._handle = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._handle = None
        heap, now = self._heap, self.now() + _EARLY_SECONDS
        try:
            for _ in range(MAX_ENDS_PER_TURN):
                if not heap or heap[0]._armed_until > now:
                    break
                timer = heap[0]
                self.remove(timer)
                timer.on_armed_time()
        finally:
            if heap:
                self._arm(heap[0]._armed_until)


class IdleTimer:
    """A timer that is cheap to restart; calls `on_expired` once after an idle period.

    Why: a timer per request would be expensive. A restart leaves the timer where it is in the queue
    if the new due time is later. If it is due too early, it is queued again.
    """

    __slots__ = ("_active", "_armed_until", "_due", "_position", "_queue")

    def __init__(self, queue: TimerQueue) -> None:
        self._queue = queue
        self._active = False
        self._due = 0.0
        self._position = -1  # in the heap of the queue; -1: in none
        self._armed_until = 0.0

    @abstractmethod
    def on_expired(self) -> None:
        """Called once when the idle period is over."""

    def restart(self, seconds: float) -> None:
        """Sets the due time to `seconds` from now."""
        due = self._due = self._queue.now() + seconds
        self._active = True
        if self._position < 0:
            self._armed_until = due
            self._queue.add(self)
        elif self._armed_until > due:
            self._armed_until = due
            self._queue.advance(self)

    def pause(self) -> None:
        self._active = False

    def cancel(self) -> None:
        self._active = False
        self._queue.remove(self)

    def on_armed_time(self) -> None:
        """Called by the queue, which the timer has left, at the time for which it was queued."""
        if not self._active:
            return
        if self._queue.now() < self._due - _EARLY_SECONDS:
            self._armed_until = self._due
            self._queue.add(self)
            return
        self._active = False
        self.on_expired()


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
        self.now = now
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
        try:
            now = self.now() + _EARLY_SECONDS
            for _ in range(MAX_ENDS_PER_TURN):
                entry = self._oldest
                if entry is None or entry._due > now:
                    break
                self.remove(entry)
                entry.on_timeout()  # it may add the entry again; until here, that starts no timer
        finally:
            oldest = self._oldest
            self._timer = (
                None if oldest is None else self._loop.call_later(max(0.0, oldest._due - self.now()), self._on_timer)
            )


class TaskDeadline:
    """A context manager that cancels the current task after `seconds` and turns this into
    TimeoutError.

    Another cancellation of the task passes as it is.

    ends: paces the cancellations of many tasks; None: they are not many.

    Why not `asyncio.timeout`: it asks for the running loop three times, each of which is a system
    call (`getpid`), and its own code is interpreted.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, ends: PacedCalls | None = None) -> None:
        self._loop = loop
        self._seconds = seconds
        self._ends = ends
        self._is_over = False
        self._cancelling = 0
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        task = self._task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a deadline belongs to a task")
        self._cancelling = task.cancelling()
        self._timer = self._loop.call_later(max(0.0, self._seconds), self._on_timer)

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

    def _on_timer(self) -> None:
        if self._ends is None:
            self._on_time()
        else:
            self._ends.run(self._on_time)

    def _on_time(self) -> None:
        if self._task is not None:
            self._is_over = True
            self._task.cancel()
