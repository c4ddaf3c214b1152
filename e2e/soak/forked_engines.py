"""Simulated engines that can be killed a thousand times: one process has everything loaded and
forks an engine in milliseconds.

Each engine is a process of its own, as if started by ``python -m fairlead_sim engine``; SIGKILL is
SIGKILL. What is saved is a second of CPU for each start, which on a small machine would be all
there is.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fairlead_testing.ports import unused_ports

READY_SECONDS = 60.0


class ForkedEngines:
    """Engines on fixed ports; ``kill`` ends one as a crash does, ``start`` starts it again."""

    def __init__(self, process: asyncio.subprocess.Process, ports: Sequence[int]) -> None:
        self._process = process
        self.ports = tuple(ports)
        self.pids: dict[int, int] = {}
        self.kills = 0

    @property
    def urls(self) -> list[str]:
        """The engines' URLs, whether or not they run."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    async def start(self, number: int) -> None:
        """Have engine ``number`` running."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"%d\n" % self.ports[number])
        line = await asyncio.wait_for(self._process.stdout.readline(), READY_SECONDS)
        self.pids[number] = int(line)

    def kill(self, number: int) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids.pop(number), signal.SIGKILL)
        self.kills += 1


@asynccontextmanager
async def start_engines(count: int, *arguments: str) -> AsyncIterator[ForkedEngines]:
    """Start them; none is left at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, *arguments), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        found = ForkedEngines(process, unused_ports(count))
        for number in range(count):
            await found.start(number)
        yield found
    finally:
        assert process.stdin is not None
        process.stdin.close()  # the end of its input is the end of everything it forked
        await process.wait()


def _serve(arguments: Sequence[str]) -> int:
    """Fork an engine for each port that is read; say its pid once it listens. At the end of the
    input, end them all."""
    from fairlead_sim.__main__ import main  # what takes the second

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    living: list[int] = []
    for line in sys.stdin:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            os.dup2(writing, 1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(main(["engine", "--listen", f"127.0.0.1:{int(line)}", *arguments]))
        os.close(writing)
        with open(reading, "rb") as said:
            ready = said.readline().startswith(b"ready")
        living.append(pid)
        print(pid if ready else 0, flush=True)
    for pid in living:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(_serve(sys.argv[1:]))
