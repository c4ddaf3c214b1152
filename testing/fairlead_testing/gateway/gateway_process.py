"""A gateway as processes inside a test, with clients of both ports and of single workers."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fairlead_testing.http.raw_client import RawConnection, RawResponse, get_request, post_request, send
from fairlead_testing.processes import descendants, ready_process

TIMEOUT_SECONDS = 120.0


@dataclass(slots=True)
class GatewayProcess:
    """A gateway that said ``ready``."""

    process: asyncio.subprocess.Process
    url: str
    manage: str

    async def wait(self) -> int:
        """Waits for its end; returns the exit code."""
        return await asyncio.wait_for(self.process.wait(), TIMEOUT_SECONDS)

    def worker_pids(self) -> set[int]:
        """Returns the process ids of its workers."""
        return {pid for pid in descendants(self.process.pid) if b"fairlead_gateway.worker.__main__" in _command(pid)}

    async def get_json(self, path: str) -> Any:
        """Returns the JSON answer of the management port."""
        return (await self.get(path)).json

    async def get(self, path: str) -> RawResponse:
        """Returns the answer of the management port."""
        return (await send(self.manage, get_request(path).replace(b"host: x", b"host: 127.0.0.1")))[0]

    async def warnings(self) -> str:
        """Returns the warnings of the management port's readiness."""
        return "; ".join((await self.get_json("/readyz"))["notes"])

    async def metric(self, name: str) -> float:
        """Returns the sum of a metric over all its labels; 0 if it has no line."""
        text = (await self.get("/metrics")).body.decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

    async def connections(self, count: int, *, exclude: str = "") -> "list[WorkerClient]":
        """Returns one open connection to each of ``count`` workers, without the worker ``but``.

        Workers differ by the request ids that they make.
        """
        found: dict[str, WorkerClient] = {}
        spare = []
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while len(found) < count:
                line = WorkerClient(await RawConnection.connect(self.url))
                spare.append(line)
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # one that leaves may close it
                    name = await line.worker_name()
                    if name != exclude:
                        found.setdefault(name, line)
        for line in spare:
            if line not in found.values():
                await line.connection.close()
        return list(found.values())


class WorkerClient:
    """A kept connection to one worker."""

    def __init__(self, connection: RawConnection) -> None:
        self.connection = connection

    async def worker_name(self) -> str:
        """Returns the part of request ids that is the worker's own."""
        await self.connection.send(get_request("/readyz", close=False))
        return (await self.connection.read_response()).fields["x-request-id"].rpartition("-")[0]

    async def post(self, body: object) -> RawResponse:
        """Sends a request and returns its response."""
        await self.send(body)
        return await self.connection.read_response()

    async def send(self, body: object) -> None:
        """Sends a request."""
        await self.connection.send(post_request(body, close=False))


@asynccontextmanager
async def gateway_process(
    fleet: Path | None,
    *options: str,
    listen: str = "127.0.0.1:0",
    environ: Mapping[str, str] | None = None,
    stderr: int | BinaryIO | None = None,
) -> AsyncIterator[GatewayProcess]:
    """Runs a gateway until the block ends.

    options: state the source of the fleet if there is no fleet file.
    environ: None: that of this process.
    """
    source = [] if fleet is None else ["--fleet", str(fleet)]
    arguments, ready = (*source, "--listen", listen, *options), r"ready (https?://\S+) manage (http://\S+)\n"
    async with ready_process("fairlead_gateway", *arguments, ready=ready, environ=environ, stderr=stderr) as started:
        process, found = started
        yield GatewayProcess(process, found[1], found[2])


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
