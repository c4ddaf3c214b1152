"""A simulated engine as a child process."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fairlead.errors import Unavailable

_READY = re.compile(rb"https?://([\d.]+):(\d+)")
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A running engine and its address."""

    host: str
    port: int
    process: asyncio.subprocess.Process

    @property
    def authority(self) -> str:
        """Returns ``host:port``, as in a Host header."""
        return f"{self.host}:{self.port}"


@asynccontextmanager
async def launch_engine(switches: Sequence[str]) -> AsyncIterator[EngineProcess]:
    """Yields an engine on a free port; it ends with the context.

    Raises Unavailable if the engine ends before it is ready, TimeoutError if that takes too long.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairlead_sim", "engine", "--listen", "127.0.0.1:0", *switches),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        host, port = await asyncio.wait_for(_wait_ready(process), _START_SECONDS)
        yield EngineProcess(host, port, process)
    finally:
        await _stop_process(process)


async def _wait_ready(process: asyncio.subprocess.Process) -> tuple[str, int]:
    if process.stdout is None:
        raise Unavailable("the engine's output is not a pipe")
    async for line in process.stdout:
        if line.startswith(b"ready") and (match := _READY.search(line)):
            return match[1].decode(), int(match[2])
    raise Unavailable(f"the engine ended before it was ready (exit status {await process.wait()})")


async def _stop_process(process: asyncio.subprocess.Process) -> None:
    """Terminates or kills the process, and reads its pipe to the end so that the transport
    closes.
    """
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
    if process.stdout is not None:
        await process.stdout.read()
