"""An indexer process for a test, killed at its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from fairlead_testing.processes import ready_process


class IndexerProcess:
    """A process that printed ``ready``."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    async def get(self, path: str) -> httpx.Response:
        """Returns the answer of its port."""
        async with httpx.AsyncClient() as client:
            return await client.get(self.url + path)

    async def metric(self, name: str, model: str = "default/tiny") -> float:
        """Returns a metric of one model; NaN while there is none."""
        for line in (await self.get("/metrics")).text.splitlines():
            if line.startswith(f'fairlead_indexer_{name}{{model="{model}"}} '):
                return float(line.rpartition(" ")[2])
        return float("nan")


@asynccontextmanager
async def indexer_process(*arguments: str) -> AsyncIterator[IndexerProcess]:
    """Runs ``python -m fairlead_kvstore`` with these arguments, on a free port."""
    async with ready_process("fairlead_kvstore", *arguments, ready=r"ready (http://\S+)") as (process, found):
        yield IndexerProcess(process, found[1])
