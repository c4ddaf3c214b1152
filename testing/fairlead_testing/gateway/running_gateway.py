"""A gateway inside a test: a fleet as a value, and limits of the test's choice.

In tests with the marker `simulated` it has simulated time and no port.

A gateway in front of one busy engine: every later request waits in the gateway.

Request outcomes for tests, from any of their fields.
"""

import asyncio
import copy
import itertools
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from fairlead.engine_profile import EngineProfile
from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, ModelRouting, RequestPolicy, SloTargets
from fairlead.limits import Limits
from fairlead.runtime.event_loop import close_server
from fairlead_gateway.http.connection import connection_factory
from fairlead_gateway.http.sockets import socket_url
from fairlead_gateway.journal import Reporters
from fairlead_gateway.messages import PreviewRoute, WorkerReport
from fairlead_gateway.profiles.messages import TimingEvent
from fairlead_gateway.proxy.gateway import Gateway
from fairlead_gateway.proxy.memory_pressure import MemoryShare
from fairlead_gateway.routing import InstanceLoad
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.telemetry import RequestOutcome
from fairlead_gateway.telemetry.worker.observers import RequestObservers
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, GatewaySecrets
from fairlead_gateway.usage.messages import UsageRow
from fairlead_gateway.worker.services import RoutePreviewer
from fairlead_testing.engines.scripted import Script, ScriptedEngine, SilentEngine, scripted_engine
from fairlead_testing.http.raw_client import RawResponse, request
from fairlead_testing.simulated.event_loop import running_clock
from fairlead_testing.waiting import wait_until

MODEL_KEY = "default/tiny"
GOOD: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = GOOD | {"stream": True}
"""A chat with a short prompt, plain and as a stream."""

SLOW = EngineProfile("slow", 1.0, kv_tokens=100_000, step_tokens=8)
"""A second a token: the engine works nothing off while a test runs."""
ALIKE = SloTargets(ttft_seconds=10_000.0)
"""One target for all prompts: requests wait for their chosen instance."""
GROWING = SloTargets(ttft_seconds=10.0, ttft_per_kilo_token_seconds=1_000.0)
"""A target that grows with the prompt: requests wait for admission."""

_FIELDS = tuple(field.name for field in fields(RequestOutcome))
_DEFAULTS: dict[str, Any] = {
    "request_id": "r1",
    "model_key": "default/tiny",
    "instance_id": None,
    "status": 200,
    "error": None,
    "started_wall": 0.0,
    "duration_seconds": 1.0,
}


class RecordedReports:
    """The channel of a worker's journal, which keeps the reports."""

    def __init__(self) -> None:
        self.reports: list[WorkerReport] = []

    def send(self, message: object) -> bool:
        assert isinstance(message, WorkerReport)
        self.reports.append(message)
        return True

    @property
    def timings(self) -> list[TimingEvent]:
        return [event for report in self.reports for event in report.timings]

    @property
    def usage(self) -> list[UsageRow]:
        return [row for report in self.reports for row in report.usage]


@dataclass(slots=True)
class RunningGateway:
    """A listening gateway."""

    url: str
    gateway: Gateway

    def loads(self) -> Mapping[str, InstanceLoad]:
        return self.gateway.stages.routers.loads()

    async def preview_route(
        self,
        path: str,
        body: bytes,
        session: str | None,
        tenant: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> RequestOutcome:
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
    model = Model(
        "default", "tiny", objectives or SloTargets(), ModelRouting(preset), requests=requests or RequestPolicy()
    )
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
async def gateway_of(*scripts: Script, limits: Limits | None = None, **options: Any) -> AsyncIterator[tuple[Any, ...]]:
    """Runs a gateway before one engine per script; returns it and the engines.

    options: of `fleet_of` and of `running_gateway`.
    """
    of_fleet = {name: options.pop(name) for name in options.keys() & (fleet_of.__kwdefaults__ or {}).keys()}
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(scripted_engine(script)) for script in scripts]
        fleet = fleet_of([engine.url for engine in engines], **of_fleet)
        yield (await stack.enter_async_context(running_gateway(fleet, limits, **options)), *engines)


@asynccontextmanager
async def gateway_before(scripts: list[Script], limits: Limits | None = None) -> AsyncIterator[RunningGateway]:
    """Runs a gateway before one engine per script; afterwards no load may be left."""
    async with gateway_of(*scripts, limits=limits) as (running, *_):
        yield running
        assert {load.inflight for load in running.loads().values()} == {0}


def chat(words: int, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "w " * words}], "stream": True, **more}


LONG = chat(400)


def with_profile(fleet: Fleet, profile: EngineProfile) -> Fleet:
    instances = {key: tuple(replace(one, profile=profile) for one in found) for key, found in fleet.instances.items()}
    return replace(fleet, instances=instances)


def slow_fleet(urls: list[str], objectives: SloTargets = GROWING, **more: Any) -> Fleet:
    return with_profile(fleet_of(urls, objectives=objectives, **more), SLOW)


def count_queued(running: RunningGateway) -> int:
    return running.gateway.stages.admission.queued().get(MODEL_KEY, 0)


def queue_exits(running: RunningGateway) -> dict[str, int]:
    return dict(running.gateway.telemetry.models[MODEL_KEY].held)


@asynccontextmanager
async def gateway_before_busy_engine(
    limits: Limits | None = None, **more: Any
) -> AsyncIterator[tuple[RunningGateway, ScriptedEngine, SilentEngine, "asyncio.Task[RawResponse]"]]:
    """Runs a gateway whose one engine is silent at its first prompt; requests have two targets.

    Afterwards no request waits, and no load is left.
    """
    silent = SilentEngine()
    async with (
        scripted_engine(silent.script) as engine,
        running_gateway(slow_fleet([engine.url], **more), limits) as running,
    ):
        async with asyncio.TaskGroup() as group:
            first = group.create_task(request(running.url, LONG))
            await wait_until(lambda: len(engine.calls) == 1)
            yield running, engine, silent, first
            silent.go_on.set()
        assert count_queued(running) == 0
        await wait_until(lambda: {load.inflight for load in running.loads().values()} <= {0})


def make_outcome(*values: Any, **named: Any) -> RequestOutcome:
    known = _DEFAULTS | dict(zip(_FIELDS, values, strict=False)) | named
    return change_outcome(RequestOutcome(known["request_id"], known["model_key"], known["started_wall"]), **known)


def change_outcome(outcome: RequestOutcome, **named: Any) -> RequestOutcome:
    """Returns a copy with other values of some fields."""
    changed = copy.copy(outcome)
    for name, value in named.items():
        setattr(changed, name, value)
    return changed
