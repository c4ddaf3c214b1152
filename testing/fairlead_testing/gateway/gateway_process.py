"""A gateway as processes inside a test, with clients of both ports and of single workers.

A gateway before simulated engines whose model has LoRA adapters.
"""

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from fairlead.adapters.model import LoraAdapter
from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_sim.runtime.simulated_engine import EngineResources
from fairlead_sim.server.process import RunningEngine, start_engine
from fairlead_testing.engines.scripted import Script, scripted_engine
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, RawResponse, get_request, post_request, send
from fairlead_testing.processes import descendants, ready_process
from fairlead_testing.simulated.event_loop import running_clock

TIMEOUT_SECONDS = 120.0


@dataclass(slots=True)
class GatewayProcess:
    """A gateway that said ``ready``."""

    process: asyncio.subprocess.Process
    url: str
    manage: str

    async def wait(self) -> int:
        return await asyncio.wait_for(self.process.wait(), TIMEOUT_SECONDS)

    def worker_pids(self) -> set[int]:
        return {pid for pid in descendants(self.process.pid) if b"fairlead_gateway.worker.__main__" in _command(pid)}

    async def get_json(self, path: str) -> Any:
        return (await self.get(path)).json

    async def get(self, path: str) -> RawResponse:
        return (await send(self.manage, get_request(path).replace(b"host: x", b"host: 127.0.0.1")))[0]

    async def warnings(self) -> str:
        return "; ".join((await self.get_json("/readyz"))["notes"])

    async def metric(self, name: str) -> float:
        return sum(await self.samples(name))

    async def samples(self, name: str, labels: str = "") -> list[float]:
        """Returns the values of a metric whose labels contain a text."""
        text = (await self.get("/metrics")).body.decode()
        found = re.findall(rf"^{name}({{[^\n]*}})? (\S+)$", text, re.MULTILINE)
        return [float(value) for shown, value in found if labels in shown]

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
        await self.connection.send(get_request("/readyz", close=False))
        return (await self.connection.read_response()).fields["x-request-id"].rpartition("-")[0]

    async def post(self, body: object) -> RawResponse:
        await self.send(body)
        return await self.connection.read_response()

    async def send(self, body: object) -> None:
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


@asynccontextmanager
async def process_before(
    folder: Path,
    *scripts: Script,
    options: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    **more: Any,
) -> AsyncIterator[tuple[Any, ...]]:
    """Runs a gateway process before one engine per script; returns it and the engines.

    folder: gets `fleet.yaml`. more: of `fleet_of`.
    """
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(scripted_engine(script)) for script in scripts]
        write_fleet_file(folder / "fleet.yaml", fleet_of([engine.url for engine in engines], **more))
        process = gateway_process(folder / "fleet.yaml", *options, environ=environ)
        yield (await stack.enter_async_context(process), *engines)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@dataclass
class Setting:
    """A gateway and its engines."""

    running: RunningGateway
    engines: list[RunningEngine]

    def loaded(self) -> list[set[str]]:
        return [{adapter.name for adapter in engine.engine.models.adapters} for engine in self.engines]

    async def restart(self, number: int, settings: EngineSettings) -> None:
        port = int(self.engines[number].url.rpartition(":")[2])
        self.engines[number] = await start_engine(settings, resources(number), host="127.0.0.1", port=port)


def resources(number: int) -> EngineResources:
    return EngineResources(running_clock(), random.Random(number), Tokenizer())


def with_adapters(fleet: Fleet, names: Sequence[str], slots: int) -> Fleet:
    """Returns the fleet with adapters of its model, whose sources are `/adapters/NAME`."""
    adapters = tuple(LoraAdapter(name, f"/adapters/{name}") for name in names)
    model = replace(fleet.models[MODEL_KEY], adapters=adapters, adapter_slots=slots)
    return replace(fleet, models={MODEL_KEY: model})


@asynccontextmanager
async def adapted(
    names: Sequence[str],
    *,
    settings: EngineSettings,
    engines: int = 1,
    slots: int = 8,
    limits: Limits | None = None,
    **more: Any,
) -> AsyncIterator[Setting]:
    """Runs a gateway and simulated engines until the block ends; no load may be left then.

    more: for `running_gateway`.
    """
    started = [await start_engine(settings, resources(number), host="127.0.0.1", port=0) for number in range(engines)]
    fleet = with_adapters(fleet_of([engine.url for engine in started]), names, slots)
    try:
        async with running_gateway(fleet, limits, **more) as running:
            setting = Setting(running, started)
            yield setting
            assert {load.inflight for load in running.loads().values()} == {0}
    finally:
        for engine in started:
            await engine.close()
