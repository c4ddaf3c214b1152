"""Simulated engines as asynchronous processes, which tests can kill, stop and continue."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fairlead_testing.processes import ready_process

_STARTS = 5


@dataclass(slots=True)
class EngineProcess:
    """A ready engine process."""

    process: asyncio.subprocess.Process
    url: str

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to it alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)


@asynccontextmanager
async def engine_process(*arguments: str, model: str = "tiny") -> AsyncIterator[EngineProcess]:
    """Runs `python -m fairlead_sim engine` on a free port, and kills it at the end of the block.

    An engine that ends before it is ready is started again, up to four times; a timeout raises.
    Why: a port of `arguments` may be taken by a connection of another process for a while.
    """
    options = ("--listen", "127.0.0.1:0", "--model", model, "--served-model-name", model, *arguments)
    async with AsyncExitStack() as stack:
        for left in reversed(range(_STARTS)):
            try:
                started = ready_process("fairlead_sim", "engine", *options, ready=r"ready (http://\S+)")
                process, found = await stack.enter_async_context(started)
                break
            except AssertionError:
                if not left:
                    raise
        yield EngineProcess(process, found[1])


@asynccontextmanager
async def engine_processes(count: int, *arguments: str) -> AsyncIterator[list[EngineProcess]]:
    """Runs several equal engines in parallel."""
    async with AsyncExitStack() as stack:
        yield await asyncio.gather(*[stack.enter_async_context(engine_process(*arguments)) for _ in range(count)])
