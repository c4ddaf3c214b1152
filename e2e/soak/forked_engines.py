"""Simulated engines that can be killed a thousand times: forks of one process that has everything
loaded.

Each engine is a process of its own, as if started by ``python -m fairlead_sim engine``. A start as
a fork takes milliseconds in place of a second of CPU.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fairlead_testing.forks.process import ForkingPopen
from fairlead_testing.ports import unused_ports

READY_SECONDS = 60.0


class ForkedEngines:
    """Engines on fixed ports; ``kill`` ends one as a crash does, ``start`` starts it again."""

    def __init__(self, count: int, *arguments: str) -> None:
        self.ports = unused_ports(count)
        self.running: dict[int, ForkingPopen] = {}
        self.kills = 0
        self._arguments = arguments

    @property
    def urls(self) -> list[str]:
        """The engines' URLs, whether or not they run."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    async def start(self, number: int) -> None:
        """Returns once engine ``number`` listens."""
        listen = f"127.0.0.1:{self.ports[number]}"
        command = [sys.executable, "-m", "fairlead_sim", "engine", "--listen", listen, *self._arguments]
        process = self.running[number] = ForkingPopen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), READY_SECONDS)
        assert line.startswith(b"ready"), line

    def kill(self, number: int) -> None:
        """Sends SIGKILL."""
        with self.running.pop(number) as process:  # waits for its end
            process.kill()
        self.kills += 1


@asynccontextmanager
async def start_engines(count: int, *arguments: str) -> AsyncIterator[ForkedEngines]:
    """Runs engines until the end of the block."""
    found = ForkedEngines(count, *arguments)
    try:
        for number in range(count):
            await found.start(number)
        yield found
    finally:
        for process in found.running.values():
            with process:
                process.kill()
