"""A gateway inside a test: real sockets, a fleet as a value, limits as the test wants them."""

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, SloTargets
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.event_loop import loop_factory
from fairlead_gateway.http.connection import connection_factory
from fairlead_gateway.http.sockets import socket_url
from fairlead_gateway.worker.api_keys import ApiKeys
from fairlead_gateway.worker.memory_pressure import MemoryShare
from fairlead_gateway.worker.observability.observers import RequestObservers
from fairlead_gateway.worker.proxy.gateway import Gateway
from fairlead_gateway.worker.reporting.timing_reporter import TimingReporter
from fairlead_testing.engines.scripted import Script, scripted_engine

MODEL_KEY = "default/tiny"
T = TypeVar("T")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine on the loop that carries a real gateway."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)


@dataclass(slots=True)
class RunningGateway:
    """A listening gateway."""

    url: str
    gateway: Gateway


def fleet_of(
    urls: Sequence[str],
    *,
    version: int = 1,
    preset: str = "dual-hash",
    states: Sequence[InstanceState] = (),
    objectives: SloTargets | None = None,
) -> Fleet:
    """One model ``tiny`` with an instance ``e-<n>`` for each URL; missing ``states`` are Ready."""
    model = Model("default", "tiny", objectives or SloTargets(), preset)
    known = [*states, *[InstanceState.READY] * (len(urls) - len(states))]
    instances = tuple(
        Instance(f"e-{number}/{number}/0", "default", "tiny", "main", url, state=known[number])
        for number, url in enumerate(urls)
    )
    return Fleet(version, version, {MODEL_KEY: model}, {MODEL_KEY: instances})


@asynccontextmanager
async def running_gateway(
    fleet: Fleet,
    limits: Limits | None = None,
    *,
    api_keys: ApiKeys | None = None,
    environ: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    observers: RequestObservers | None = None,
    memory_share: MemoryShare | None = None,
    timing_reporter: TimingReporter | None = None,
) -> AsyncIterator[RunningGateway]:
    """Listen on a free loopback port until the block ends."""
    loop = asyncio.get_running_loop()
    count = itertools.count(1)
    gateway = Gateway(
        clock=SystemClock(),
        limits=limits or Limits(),
        loop=loop,
        secret=b"a secret of the test",
        new_id=lambda: f"req-{next(count)}",
        api_keys=api_keys,
        environ=environ or {},
        memory_share=memory_share,
        observers=observers,
        timing_reporter=timing_reporter,
    )
    gateway.update_fleet(fleet)
    server = await loop.create_server(connection_factory(gateway.listener), host, 0, ssl=tls)
    try:
        yield RunningGateway(socket_url(server.sockets[0], secure=tls is not None), gateway)
    finally:
        server.close()
        gateway.close()
        while gateway.listener.connections or gateway.inflight_count():  # noqa: ASYNC110 - transports close a turn later
            await asyncio.sleep(0)
        await server.wait_closed()


async def with_engines(
    scripts: list[Script], use: Callable[[RunningGateway], Awaitable[None]], limits: Limits | None = None
) -> None:
    """A gateway before one engine for each script; afterwards the ledger must be empty."""
    async with asyncio.TaskGroup() as group:
        ready: asyncio.Queue[str] = asyncio.Queue()
        over = asyncio.Event()

        async def engine(script: Script) -> None:
            async with scripted_engine(script) as one:
                ready.put_nowait(one.url)
                await over.wait()

        for script in scripts:
            group.create_task(engine(script))
        try:
            urls = [await ready.get() for _ in scripts]
            async with running_gateway(fleet_of(urls), limits) as running:
                await use(running)
                assert {load.inflight for load in running.gateway.loads().values()} == {0}
        finally:
            over.set()
