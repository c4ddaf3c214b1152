"""A background task can be ended even when its first cancellation gets lost."""

import asyncio
import logging

import pytest

from fairlead.runtime import tasks
from fairlead.runtime.tasks import cancel_and_wait, first_failure, run_despite_defects


async def test_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                lost += 1
                if lost == 2:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await cancel_and_wait(task)
    assert task.cancelled()


async def test_failed_or_missing_task_counts_as_ended() -> None:
    async def failing() -> None:
        raise ValueError("on purpose")

    task = asyncio.create_task(failing())
    await cancel_and_wait(task)
    assert task.done()
    await cancel_and_wait(task)
    await cancel_and_wait(None)


async def _raise() -> None:
    raise ValueError("a defect")


async def _end() -> None:
    return


async def test_failed_task_is_reported_and_ended_task_is_not() -> None:
    stop = asyncio.Event()
    stopped = asyncio.create_task(stop.wait())
    for work, expected in ((_raise, ValueError), (_end, None)):
        telling = asyncio.create_task(first_failure([asyncio.create_task(work())], stopped))
        if expected is None:
            stop.set()
        error = await asyncio.wait_for(telling, 30)
        assert (None if error is None else type(error)) == expected
    await cancel_and_wait(stopped)


async def test_work_that_raises_goes_on_and_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_DEFECT_PAUSE_SECONDS", 0.0)
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1
        if starts < 3:
            raise ValueError("on purpose")

    await run_despite_defects(work, logging.getLogger("fairlead.gateway"), "peers")
    assert starts == 3
    assert [record.getMessage() for record in caplog.records] == ["a defect interrupted the task of the peers"] * 2
