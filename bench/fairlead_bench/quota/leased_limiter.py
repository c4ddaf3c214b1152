"""Fairlead's own limits in simulated time: gates, reporters and services of several gateways.

All of it is the code of the product. Only the requests are stand-ins with the fields that it reads,
and the store is the reference of the script, a round trip away.
"""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from fairlead.fleet.model import TokenPrice
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_bench.quota.published_limiters import ROUND_TRIP_SECONDS, Limiter
from fairlead_bench.quota.tenant_traffic import (
    BYTES_PER_TOKEN,
    INPUT_TOKEN_NANO_USD,
    OUTPUT_TOKEN_NANO_USD,
    TenantLimits,
    TenantRequest,
)
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.ipc.messages import QuotaReport, QuotaUpdates
from fairlead_gateway.quota.exchange import Exchange, ExchangeReply
from fairlead_gateway.quota.store import QuotaStore
from fairlead_gateway.supervisor.quota.quota_service import QuotaService
from fairlead_gateway.worker.quota.limit_gate import LimitGate
from fairlead_gateway.worker.quota.quota_reporter import QuotaReporter
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.runtime import WorkerRuntime

_MODEL = "bench"
_PRICE = TokenPrice(INPUT_TOKEN_NANO_USD, INPUT_TOKEN_NANO_USD, OUTPUT_TOKEN_NANO_USD)
_ROUTERS = SimpleNamespace(caller_tokens=lambda model_key, caller, request: request.prompt_tokens)


class _DistantStore:
    """The store of all gateways."""

    def __init__(self, store: QuotaStore, wall: Callable[[], float]) -> None:
        self.problem: str | None = None
        self._store = store
        self._wall = wall

    async def apply(self, exchanges: Sequence[tuple[str, Exchange]]) -> list[ExchangeReply | None]:
        """Applies exchanges half a round trip from here."""
        await asyncio.sleep(ROUND_TRIP_SECONDS / 2)
        now_ms = int(self._wall() * 1000)
        replies: list[ExchangeReply | None] = [self._store.apply(tenant, one, now_ms) for tenant, one in exchanges]
        await asyncio.sleep(ROUND_TRIP_SECONDS / 2)
        return replies


class _Gateway:
    """One gateway with one worker; messages between them arrive at once."""

    number = 0

    def __init__(self, name: str, tenant: Tenant, store: _DistantStore, clock: Clock, limits: Limits) -> None:
        loop = asyncio.get_running_loop()
        self.service = QuotaService(store, name, clock=clock, limits=limits)
        self.service.set_tenants([tenant])
        self.reporter = QuotaReporter(cast(Any, SimpleNamespace(send=self._report)), loop, clock, limits)
        runtime = WorkerRuntime(clock, limits, loop)
        self.gate = LimitGate(runtime, cast(Any, _ROUTERS), self.reporter, lambda context, error: None)
        self.reporter.tenants = self.gate.tenants
        self.service.start()

    def _report(self, message: msgspec.Struct) -> bool:
        assert isinstance(message, QuotaReport)
        self.service.on_report(self, message)
        return True

    def send(self, message: msgspec.Struct) -> bool:
        """Takes grants of the service."""
        assert isinstance(message, QuotaUpdates)
        for limits in self.reporter.apply(message):
            self.gate.serve_waiting(limits)
        return True


class LeasedLimiter(Limiter):
    """The limits of one tenant, leased to the workers of several gateways."""

    def __init__(self, limits: TenantLimits, clock: Clock, replicas: int, *, is_strict: bool) -> None:
        super().__init__(limits, clock.wall)
        units = (
            (LimitUnit.REQUESTS, limits.requests, Window.MINUTE),
            (LimitUnit.TOKENS, limits.tokens, Window.MINUTE),
            (LimitUnit.COST, limits.budget, Window.DAY),
        )
        self._tenant = Tenant(
            "acme",
            limits=tuple(Limit(unit, amount, window) for unit, amount, window in units if amount is not None),
            enforcement=Enforcement.STRICT if is_strict else Enforcement.ESTIMATED,
        )
        self._clock = clock
        store = _DistantStore(QuotaStore("bench"), clock.wall)
        self._gateways = [_Gateway(f"gw{number}", self._tenant, store, clock, Limits()) for number in range(replicas)]

    async def admit(self, request: TenantRequest) -> object | None:
        """Reserves as a worker does; waits for a slice if it must."""
        gate = self._gateways[request.replica].gate
        context = self._context(request)
        try:
            if not gate.reserve(context):
                await gate.ensure_reserved(context)
        except GatewayError:
            return None
        self._calendar_window()
        return context

    async def settle(self, request: TenantRequest, ticket: object) -> None:
        """Settles with what the engine reports."""
        self._calendar_window()
        context = cast(RequestContext, ticket)
        context.result.prompt_tokens = request.prompt_tokens
        context.result.output_tokens = request.output_tokens
        self._gateways[request.replica].gate.settle(context)

    async def stop(self) -> None:
        """Gives all slices back and stops the services."""
        for gateway in self._gateways:
            gateway.reporter.close()
            await gateway.service.stop()

    def _context(self, request: TenantRequest) -> RequestContext:
        """Returns a chat as the gate sees it."""
        estimate = request.prompt_bytes / BYTES_PER_TOKEN
        fields = SimpleNamespace(
            tenant=self._tenant,
            caller=self._tenant.name,
            policy=SimpleNamespace(tenant=self._tenant, has_limits=True),
            key_name="k",
            reservation=None,
            http_request=SimpleNamespace(head=SimpleNamespace(path="/v1/chat/completions")),
            route_request=SimpleNamespace(prompt_tokens=estimate, sequences=1),
            request=SimpleNamespace(
                adapter=None,
                model_key=_MODEL,
                is_passthrough=False,
                is_counted=True,
                max_tokens=request.max_tokens,
                sequences=1,
                answers=1,
                client_body=b"x" * request.prompt_bytes,
                bounds=None,
                stream=True,
                fields=None,
                decoded_fields={},
                model=SimpleNamespace(price=_PRICE),
            ),
            result=SimpleNamespace(
                dispatched_at=self._clock.now(),
                prompt_tokens=None,
                output_tokens=None,
                cached_tokens=None,
                client_disconnected=False,
                error=None,
                status=200,
                event_count=0,
                is_refunded=False,
                is_complete=True,
            ),
        )
        return cast(RequestContext, fields)
