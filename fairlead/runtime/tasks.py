"""Ending a background task for certain, and hearing of one that failed."""

import asyncio
from collections.abc import Iterable
from typing import Any

_RECANCEL_SECONDS = 0.05


async def cancel_and_wait(task: asyncio.Task[Any] | None) -> None:
    """Cancel ``task`` and return when it is over, however it ends.

    One cancellation can get lost: ``asyncio.wait_for`` of Python 3.11 drops it when what it waits for is done in the same turn,
    and libraries (redis-py's sending, for one) use it. So it is asked again until it holds.
    """
    if task is None:
        return
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_RECANCEL_SECONDS)
    if not task.cancelled():
        task.exception()  # looked at, so that the loop does not complain that nobody did


async def first_failure(work: Iterable[asyncio.Task[Any]], stopped: asyncio.Task[Any]) -> BaseException | None:
    """Wait until ``stopped`` is done (None), or one of ``work`` has failed before (why). One that just ends is no failure."""
    running = {stopped, *work}
    while not stopped.done():
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for one in done - {stopped}:
            if not one.cancelled() and (error := one.exception()) is not None:
                return error
    return None
