"""A gateway inside a test whose tenants have limits, with a service of limits on the same loop."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec

from fairlead.fleet.model import Model, TokenPrice
from fairlead.limits import Limits
from fairlead.routes.model import Route
from fairlead.tenants.model import Tenant
from fairlead_gateway.journal import Reporters
from fairlead_gateway.limits.messages import QuotaReport, QuotaUpdates
from fairlead_gateway.limits.supervisor.quota_service import MemoryLimitStore, QuotaService
from fairlead_gateway.limits.supervisor.redis_limit_store import RedisLimitStore
from fairlead_gateway.limits.worker.quota_reporter import QuotaReporter
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.engines.scripted import EngineCall, Script, scripted_engine, usage
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.gateway.tenant_keys import keys_of
from fairlead_testing.simulated.event_loop import running_clock

QUICK_LIMITS = dataclasses.replace(
    Limits(),
    quota_report_seconds=0.02,
    quota_renew_seconds=0.05,
    redis_pause_seconds=0.1,
    redis_ping_seconds=0.05,
    redis_timeout_seconds=20.0,
)


class LoopbackWorker:
    """A worker whose messages to the supervisor arrive at once."""

    number = 0

    def __init__(self) -> None:
        self.service: QuotaService | None = None
        self.reporter: QuotaReporter | None = None
        self.running: RunningGateway | None = None
        self.reports: list[QuotaReport] = []

    def send_to_supervisor(self, message: msgspec.Struct) -> bool:
        """Sends a message of the worker."""
        assert isinstance(message, QuotaReport)
        assert self.service is not None
        msgspec.msgpack.encode(message)  # raises as a channel does
        self.reports.append(message)
        self.service.on_report(self, message)
        return True

    def send(self, message: msgspec.Struct) -> bool:
        """Sends a message of the supervisor."""
        assert isinstance(message, QuotaUpdates)
        msgspec.msgpack.encode(message)  # raises as a channel does
        assert self.reporter is not None
        assert self.running is not None
        for limits in self.reporter.apply(message):
            self.running.gateway.stages.limit_gate.serve_waiting(limits)
        return True


class _Sender:
    def __init__(self, worker: LoopbackWorker) -> None:
        self._worker = worker

    def send(self, message: msgspec.Struct) -> bool:
        return self._worker.send_to_supervisor(message)


@dataclass(slots=True)
class LimitedGateway:
    """A running gateway with limits. `calls` are the requests that its engine got."""

    running: RunningGateway
    service: QuotaService
    client: httpx.AsyncClient
    calls: list[EngineCall] = field(default_factory=list)

    async def chat(self, tenant: str, **fields: object) -> httpx.Response:
        """Sends a chat with the key of a tenant."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}
        headers = {"authorization": f"Bearer {tenant}"}
        return await self.client.post(f"{self.running.url}/v1/chat/completions", json=body, headers=headers)

    def used(self, tenant: str, limit: str) -> int:
        leased = self.running.gateway.stages.limit_gate.tenants[tenant].leased[limit]
        return leased.current.spent

    def busy(self, tenant: str, limit: str) -> int:
        return self.running.gateway.stages.limit_gate.tenants[tenant].leased[limit].current.busy


def answer(prompt: int = 7, output: int = 5, cached: int = 0) -> dict[str, object]:
    message = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    return {**usage(prompt, cached, output), "id": "x", "object": "chat.completion", "choices": [message]}


@asynccontextmanager
async def limited_gateway(
    script: Script,
    tenants: Sequence[Tenant],
    limits: Limits | None = None,
    *,
    price: TokenPrice | None = None,
    service: QuotaService | None = None,
    routes: Sequence[Route] = (),
) -> AsyncIterator[LimitedGateway]:
    """Runs a gateway before an engine.

    service: not started; None for one with a store in memory.
    routes: to the model `tiny` of the namespace `default`.
    """
    clock, found = running_clock(), limits or Limits()
    worker = LoopbackWorker()
    if service is None:
        service = QuotaService(MemoryLimitStore(clock), "gw", clock=clock, limits=found)
    service.set_tenants(tenants)
    worker.service = service
    async with scripted_engine(script) as engine, httpx.AsyncClient(timeout=20) as client:
        reporter = worker.reporter = QuotaReporter(_Sender(worker), asyncio.get_running_loop(), clock, found)
        fleet = fleet_of([engine.url])
        model = dataclasses.replace(fleet.models[MODEL_KEY], price=price)
        fleet = dataclasses.replace(fleet, models={MODEL_KEY: model}, routes={route.key: route for route in routes})
        assert isinstance(model, Model)
        async with running_gateway(
            fleet, found, api_keys=keys_of(*tenants), reporters=Reporters(limits=reporter)
        ) as running:
            worker.running = running
            reporter.tenants = running.gateway.stages.limit_gate.tenants
            service.start()
            try:
                yield LimitedGateway(running, service, client, engine.calls)
            finally:
                reporter.close()
                await service.stop()


async def _answer(call: EngineCall) -> None:
    await call.respond(answer())


@asynccontextmanager
async def limited_gateways(
    url: str,
    tenants: Sequence[Tenant],
    count: int,
    folder: Path | None = None,
    *,
    lease_seconds: float = 1.0,
    price: TokenPrice | None = None,
) -> AsyncIterator[list[LimitedGateway]]:
    """Runs gateways that share a Redis, each with its own link and engine.

    folder: of checkpoints; None: without.
    lease_seconds: long where no lease may end, however busy the machine is.
    """
    limits = dataclasses.replace(QUICK_LIMITS, quota_lease_seconds=lease_seconds)
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            link = RedisLink(url, running_clock(), limits=limits)
            link.start()
            stack.push_async_callback(link.stop)
            await link.wait_connected()
            service = QuotaService(
                RedisLimitStore(link), f"gw{number}", clock=running_clock(), limits=limits, checkpoint_folder=folder
            )
            running = limited_gateway(_answer, tenants, limits, price=price, service=service)
            found.append(await stack.enter_async_context(running))
        yield found


async def send_chats(gateways: Sequence[LimitedGateway], count: int, tenant: str = "acme") -> list[int]:
    answers = await asyncio.gather(*(gateways[number % len(gateways)].chat(tenant) for number in range(count)))
    return [one.status_code for one in answers]


async def send_until_spent(gateways: Sequence[LimitedGateway], amount: int, tenant: str = "acme") -> int:
    """Sends until all gateways know that so much of a tenant's limit was used, and refuse.

    Returns how many requests were answered. While the store is away, they get 503.
    """
    answered = 0
    while min(known_use(gateways, tenant)) < amount:
        answered += (await send_chats(gateways, 2 * len(gateways), tenant)).count(200)
    assert set(await send_chats(gateways, 2 * len(gateways), tenant)) == {429}
    return answered


def known_use(gateways: Sequence[LimitedGateway], tenant: str = "acme") -> set[int]:
    return {sum(row.spent for _, row in gateway.service.ledgers[tenant].rows()) for gateway in gateways}
