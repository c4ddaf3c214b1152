"""An indexer process for a test, killed at its end."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

PATIENCE_SECONDS = 60.0


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
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairlead_kvstore", *arguments), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_SECONDS)).decode()
        assert line.startswith("ready http://"), line
        yield IndexerProcess(process, line.split()[1])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if process.stdout is not None:
            process.stdout.feed_eof()
