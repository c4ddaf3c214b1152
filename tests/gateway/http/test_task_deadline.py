"""The deadline of a task: what it ends, and what it lets pass."""

import asyncio

import pytest

from fairlead_gateway.http.timers import TaskDeadline

pytestmark = pytest.mark.simulated


async def test_what_takes_too_long_ends_with_a_timeout_and_the_task_goes_on() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError), TaskDeadline(loop, 0.0):
        await loop.create_future()
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)


async def test_what_is_done_in_time_is_not_disturbed_later() -> None:
    loop = asyncio.get_running_loop()
    with TaskDeadline(loop, 0.0):
        pass
    for _ in range(3):
        await asyncio.sleep(0)


async def test_errors_and_other_cancellations_pass() -> None:
    async def wait(loop: asyncio.AbstractEventLoop) -> None:
        with TaskDeadline(loop, 60.0):
            await loop.create_future()

    loop = asyncio.get_running_loop()
    with pytest.raises(KeyError), TaskDeadline(loop, 60.0):
        raise KeyError
    task = loop.create_task(wait(loop))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancellation_beside_the_deadline_is_not_lost() -> None:
    async def wait(loop: asyncio.AbstractEventLoop, task: "list[asyncio.Task[None]]") -> None:
        with TaskDeadline(loop, 0.0):
            try:
                await loop.create_future()
            finally:
                task[0].cancel()

    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    tasks.append(loop.create_task(wait(loop, tasks)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


def test_it_needs_a_task() -> None:
    loop = asyncio.new_event_loop()
    with pytest.raises(RuntimeError), TaskDeadline(loop, 1.0):
        pass
    loop.close()
