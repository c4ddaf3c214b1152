"""An operator as a process inside a test: who it is says a kubeconfig; its health and metrics are asked over HTTP."""

import asyncio
import contextlib
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fairlead_testing.redis.valkey_cluster import free_port
from fairlead_testing.waiting import wait_until_async

PATIENCE_SECONDS = 120.0
_PORT_TAKEN_MESSAGE = "address already in use"


@dataclass(slots=True)
class OperatorProcess:
    """One that answers on its port. ``log`` holds what it said."""

    process: asyncio.subprocess.Process
    url: str
    log: Path

    async def get(self, path: str) -> str:
        """What it answers there, also with a status of failure. Raises OSError when it does not."""
        return await asyncio.to_thread(self._get, path)

    async def is_leading(self) -> bool:
        """Whether it leads and has listed everything."""
        return "fairlead_operator_synced 1.0" in await self.get("/metrics")

    async def stop(self) -> int:
        """Tell it to stop, and wait; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), PATIENCE_SECONDS)

    def _get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10.0) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode()


@asynccontextmanager
async def operator_process(
    kubeconfig: Path, log: Path, *options: str, **variables: str
) -> AsyncIterator[OperatorProcess]:
    """Run an operator until the block ends; with simulated engines, and ``FAIRLEAD_…`` variables of these names in lower case."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")}
    given = {f"FAIRLEAD_{name.upper()}": value for name, value in variables.items()}
    usual = {"KUBECONFIG": str(kubeconfig), "FAIRLEAD_ENGINE_IMAGES": "sim=example.com/sim:1"}
    environ = others | usual | given
    operator = await _start(log, options, environ)
    try:
        while not await _answers(operator):
            await operator.process.wait()
            assert _PORT_TAKEN_MESSAGE in await asyncio.to_thread(log.read_text), f"it ended: see {log}"
            operator = await _start(log, options, environ)
        yield operator
    finally:
        with contextlib.suppress(ProcessLookupError):
            operator.process.kill()
        await operator.process.wait()


async def _start(log: Path, options: tuple[str, ...], environ: dict[str, str]) -> OperatorProcess:
    """On a port that was free a moment ago: another test may take it first."""
    port = free_port()
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fairlead_operator", "--host", "127.0.0.1", "--port", str(port), *options),
            env=environ,
            stdout=out,
            stderr=out,
        )
    return OperatorProcess(process, f"http://127.0.0.1:{port}", log)


async def _answers(operator: OperatorProcess) -> bool:
    """True when it does; False when it ended before."""
    found = False

    async def decided() -> bool:
        nonlocal found
        if operator.process.returncode is not None:
            return True
        with contextlib.suppress(OSError):
            found = bool(await operator.get("/healthz"))
        return found

    await wait_until_async(decided)
    return found
