"""The supervisor's handle of one worker: a worker that hangs, and one that was only paused."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import cast

import pytest

from fairlead.runtime.clock import ManualClock
from fairlead_gateway.supervisor.worker_handle import WORKER_FROZEN_SECONDS, SpawnedWorker, WorkerHandle, WorkerListener

pytestmark = pytest.mark.sockets

FROZEN_SECONDS = WORKER_FROZEN_SECONDS


class Listener:
    """Notes the exit of a worker."""

    def __init__(self) -> None:
        self.exits: list[WorkerHandle] = []

    def on_exit(self, worker: WorkerHandle) -> None:
        self.exits.append(worker)


@pytest.fixture
def spawned() -> Iterator[SpawnedWorker]:
    """A process that says nothing, until the test ends."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    yield SpawnedWorker(process, ours)
    process.kill()
    process.communicate()
    ours.close()
    theirs.close()


def create_handle(spawned: SpawnedWorker, listener: Listener) -> WorkerHandle:
    return WorkerHandle(1, 0, spawned, cast(WorkerListener, listener), ManualClock())


async def test_worker_that_hangs_is_killed_so_that_it_is_replaced(spawned: SpawnedWorker) -> None:
    listener = Listener()
    worker = create_handle(spawned, listener)
    worker.unresponsive_since = 0.0
    for _ in range(int(FROZEN_SECONDS) - 1):
        worker.count_silence(1.0)
    assert spawned.process.poll() is None
    worker.count_silence(1.0)
    async with asyncio.timeout(60):
        assert await worker.exited == -9
    await asyncio.sleep(0)
    assert listener.exits == [worker]


async def test_worker_that_answers_again_is_not_killed(spawned: SpawnedWorker) -> None:
    worker = create_handle(spawned, Listener())
    for since in (0.0, None, 0.0):  # the machine may have been paused for hours meanwhile
        worker.unresponsive_since = since
        worker.count_silence(FROZEN_SECONDS - 1.0)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(worker.exited), 0.0)
    assert spawned.process.poll() is None
