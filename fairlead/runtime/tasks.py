"""Helpers for background asyncio tasks: reliable cancellation, and detection of failures."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

_RECANCEL_SECONDS = 0.05
_DEFECT_PAUSE_SECONDS = 1.0


async def cancel_and_wait(task: asyncio.Future[Any] | None) -> None:
    """Cancels `task` and returns when it has ended, whatever its result.

    Why it cancels repeatedly: in Python 3.11, `asyncio.wait_for` drops a cancellation if the
    awaited future completes in the same loop iteration. Libraries use `wait_for`, for example
    redis-py when it sends.
    """
    if task is None:
        return
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_RECANCEL_SECONDS)
    if not task.cancelled():
        task.exception()  # retrieved, so that the loop does not warn about it


async def end_with_first(*work: Awaitable[Any]) -> set[asyncio.Future[Any]]:
    """Runs `work` side by side until the first ends, and returns the tasks that ended.

    All others are cancelled, one after the other, and have ended then.
    """
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(part) for part in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            await cancel_and_wait(task)
    return done


async def run_despite_defects(work: Callable[[], Awaitable[None]], log: logging.Logger, name: str) -> None:
    """Runs `work`, and again a second after each exception of it, which is logged.

    Why: nothing awaits the tasks that read Redis. If a value ended one, the gateway would keep what
    it last read until its restart, and nothing would show it.
    """
    while True:
        try:
            await work()
            return
        except Exception:  # it is logged
            log.exception("a defect interrupted the task of the %s", name)
        await asyncio.sleep(_DEFECT_PAUSE_SECONDS)


async def first_failure(work: Iterable[asyncio.Task[Any]], stopped: asyncio.Task[Any]) -> BaseException | None:
    """Waits until `stopped` is done (returns None) or a task of `work` fails (returns its error).

    A task that ends without an error is not a failure.
    """
    running = {stopped, *work}
    while not stopped.done():
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopped}:
            if not task.cancelled() and (error := task.exception()) is not None:
                return error
    return None


class KeyedTasks:
    """Background tasks by key, at most one at a time for each. They must not raise."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, key: str, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None] | None:
        """Starts `work` as the task of a key and returns it; None while an earlier one runs."""
        if key in self._tasks:
            return None
        task = self._tasks[key] = asyncio.ensure_future(work())
        task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return task

    async def wait(self) -> None:
        """Returns when all tasks have ended. A cancellation cancels them."""
        try:
            while self._tasks:
                await asyncio.wait(tuple(self._tasks.values()))
        except asyncio.CancelledError:
            await self.cancel()
            raise

    async def cancel(self) -> None:
        for task in tuple(self._tasks.values()):
            await cancel_and_wait(task)
