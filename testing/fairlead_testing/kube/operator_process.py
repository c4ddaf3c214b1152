"""An asynchronous operator process for tests, with its health and metrics over HTTP."""

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

from fairlead_testing.ports import unused_port
from fairlead_testing.waiting import wait_until

PATIENCE_SECONDS = 120.0
_PORT_TAKEN_MESSAGE = "address already in use"


@dataclass(slots=True)
class OperatorProcess:
    """A running operator. `log` is the file of its output."""

    process: asyncio.subprocess.Process
    url: str
    log: Path

    async def get(self, path: str) -> str:
        """Returns the response of a path, also for an error status. Raises OSError without a
        response.
        """
        return await asyncio.to_thread(self._get, path)

    async def is_leading(self) -> bool:
        """Returns True if it leads and has listed everything."""
        return "fairlead_operator_synced 1.0" in await self.get("/metrics")

    async def stop(self) -> int:
        """Stops the process and returns its exit code."""
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
    """Runs an operator until the block ends, with simulated engines.

    variables: `FAIRLEAD_…` variables, named in lower case without the prefix.
    """
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
    """Starts it on a port that was free a moment ago; another process may take it first."""
    port = unused_port()
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fairlead_operator", "--host", "127.0.0.1", "--port", str(port), *options),
            env=environ,
            stdout=out,
            stderr=out,
        )
    return OperatorProcess(process, f"http://127.0.0.1:{port}", log)


async def _answers(operator: OperatorProcess) -> bool:
    """Returns True once it responds; False if it ends first."""
    found = False

    async def decided() -> bool:
        nonlocal found
        if operator.process.returncode is not None:
            return True
        with contextlib.suppress(OSError):
            found = bool(await operator.get("/healthz"))
        return found

    await wait_until(decided)
    return found
