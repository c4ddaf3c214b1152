"""A gateway inside a test: a fleet as a value, and limits of the test's choice.

In tests with the marker `simulated` it has simulated time and no port.
"""

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, RequestPolicy, SloTargets
from fairlead.limits import Limits
from fairlead.runtime.event_loop import close_server
from fairlead_gateway.http.connection import connection_factory
from fairlead_gateway.http.sockets import socket_url
from fairlead_gateway.ipc.messages import PreviewRoute
from fairlead_gateway.routing import InstanceLoad
from fairlead_gateway.telemetry.decision_log import LoggedRequest
from fairlead_gateway.worker.api_keys import ApiKeys, GatewaySecrets
from fairlead_gateway.worker.memory_pressure import MemoryShare
from fairlead_gateway.worker.observability.observers import RequestObservers
from fairlead_gateway.worker.proxy.gateway import Gateway
from fairlead_gateway.worker.reporting.reporters import Reporters
from fairlead_gateway.worker.runtime import WorkerRuntime
from fairlead_gateway.worker.services import RoutePreviewer
from fairlead_testing.engines.scripted import Script, scripted_engine
from fairlead_testing.simulated.event_loop import running_clock

MODEL_KEY = "default/tiny"


@dataclass(slots=True)
class RunningGateway:
    """A listening gateway."""

    url: str
    gateway: Gateway

    def loads(self) -> Mapping[str, InstanceLoad]:
        """Returns the load by instance."""
        return self.gateway.stack.routers.loads()

    async def preview_route(
        self,
        path: str,
        body: bytes,
        session: str | None,
        tenant: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> LoggedRequest:
        """Returns where a request would go."""
        return await RoutePreviewer(self.gateway).preview(PreviewRoute(0, path, body, session, tenant, list(headers)))


def fleet_of(
    urls: Sequence[str],
    *,
    version: int = 1,
    preset: str = "dual-hash",
    states: Sequence[InstanceState] = (),
    objectives: SloTargets | None = None,
    requests: RequestPolicy | None = None,
) -> Fleet:
    """Returns a fleet of one model, `tiny`, with an instance `e-<n>` per URL.

    states: of the first instances; the others are ready.
    """
    model = Model("default", "tiny", objectives or SloTargets(), preset, requests=requests or RequestPolicy())
    all_states = [*states, *[InstanceState.READY] * (len(urls) - len(states))]
    instances = tuple(
        Instance(f"e-{number}/{number}/0", "default", "tiny", "main", url, state=all_states[number])
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
    observers: RequestObservers | None = None,
    memory_share: MemoryShare | None = None,
    reporters: Reporters | None = None,
) -> AsyncIterator[RunningGateway]:
    """Runs a gateway on a free loopback port until the block ends.

    Why 8 parameters: all but the fleet have a default, and most tests set one of them.
    """
    loop = asyncio.get_running_loop()
    count = itertools.count(1)
    runtime = WorkerRuntime(running_clock(), limits or Limits(), loop)
    credentials = EngineCredentials(environ or {}, runtime.now)
    gateway = Gateway(
        runtime,
        GatewaySecrets(b"a secret of the test", credentials, api_keys),
        create_request_id=lambda: f"req-{next(count)}",
        memory_share=memory_share,
        observers=observers,
        reporters=reporters,
    )
    gateway.update_fleet(fleet)
    server = await loop.create_server(connection_factory(gateway.listener), "127.0.0.1", 0, ssl=tls)
    try:
        yield RunningGateway(socket_url(server.sockets[0], secure=tls is not None), gateway)
    finally:
        await close_server(server)
        gateway.close()
        while gateway.listener.connections or gateway.inflight_count():  # noqa: ASYNC110 - transports close a turn later
            await asyncio.sleep(0)
        await server.wait_closed()


@asynccontextmanager
async def gateway_before(scripts: list[Script], limits: Limits | None = None) -> AsyncIterator[RunningGateway]:
    """Runs a gateway before one engine per script; afterwards no load may be left."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(scripted_engine(script)) for script in scripts]
        running = await stack.enter_async_context(running_gateway(fleet_of([engine.url for engine in engines]), limits))
        yield running
        assert {load.inflight for load in running.loads().values()} == {0}
