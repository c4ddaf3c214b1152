"""The accuracy of limits: over-run and under-use, in simulated time.

- Over-run: what a window used beyond the limit, as a share of the limit, on average.
- Under-use: the share of the limit that was not used in the time of the run, though the tenant
  always wanted more.

A request counts in the window in which it was admitted, or in which it ended. The better of both
counts. A budget has one window, the whole run.

Gates, reporters and services of several gateways are the code of the product. Only the requests are
stand-ins with the fields that it reads, and the store is the reference of the script, a round trip
away.
"""

import asyncio
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec

from fairlead.fleet.model import TokenPrice
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_gateway.dialects.chat import CHAT
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.limits.exchange import Exchange, ExchangeReply
from fairlead_gateway.limits.messages import QuotaReport, QuotaUpdates
from fairlead_gateway.limits.store import QuotaStore
from fairlead_gateway.limits.supervisor.quota_service import QuotaService
from fairlead_gateway.limits.worker.limit_gate import LimitGate
from fairlead_gateway.limits.worker.quota_reporter import QuotaReporter
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_testing.simulated.event_loop import SimulatedLoop

BYTES_PER_TOKEN = 4.0
"""The estimate of a prompt."""
TTFT_SECONDS = 0.15
TPOT_SECONDS = 0.02
WINDOW_SECONDS = 60.0
_PROMPT_TOKENS = (5.0, 0.7)
_OUTPUT_TOKENS = (5.0, 0.8)
"""Mean and deviation of the logarithm: a median of 148 tokens."""
_MAX_OUTPUT_TOKENS = 4_000
INPUT_TOKEN_NANO_USD = 500
OUTPUT_TOKEN_NANO_USD = 1_500
"""Prices of a token, in billionths of a US dollar."""
_MAX_FAN_OUT = 8

ROUND_TRIP_SECONDS: Final = 0.0005
_MODEL = "bench"
_PRICE = TokenPrice(INPUT_TOKEN_NANO_USD, INPUT_TOKEN_NANO_USD, OUTPUT_TOKEN_NANO_USD)
_ROUTERS = SimpleNamespace(caller_tokens=lambda model_key, caller, request: request.prompt_tokens)

REPLICAS = 3
_WARM_UP_WINDOWS = 1
"""Not judged: the store is empty, and no answer was measured."""

ESTIMATED = "fairlead estimated"
STRICT = "fairlead strict"


@dataclass(frozen=True, slots=True)
class TenantRequest:
    """One request, with what its answer will turn out to be.

    at: seconds after the beginning.
    replica: the gateway that gets it.
    max_tokens: None if its client states none.
    """

    at: float
    replica: int
    prompt_bytes: int
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None

    @property
    def tokens(self) -> int:
        """The tokens that the engine will report."""
        return self.prompt_tokens + self.output_tokens

    @property
    def nano_usd(self) -> int:
        """The cost of the tokens that the engine will report, in billionths of a US dollar."""
        return self.prompt_tokens * INPUT_TOKEN_NANO_USD + self.output_tokens * OUTPUT_TOKEN_NANO_USD

    @property
    def seconds(self) -> float:
        return TTFT_SECONDS + TPOT_SECONDS * self.output_tokens


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """The limits of a tenant in one minute, or the budget of a day; None: not limited.

    budget: in billionths of a US dollar.
    """

    requests: int | None = None
    tokens: int | None = None
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class TrafficCase:
    """Limits and the traffic that meets them.

    requests_per_minute: how much the tenant sends, on average.
    max_tokens: what its clients state.
    """

    name: str
    limits: TenantLimits
    requests_per_minute: float
    max_tokens: int | None = None


def tenant_requests(case: TrafficCase, seconds: float, replicas: int, seed: int) -> Sequence[TenantRequest]:
    """Returns the requests of a case in the order of their times.

    Clients send one to eight requests at once, as agents do, at random times.
    """
    draw = random.Random(f"{case.name} {seed}")
    rate = case.requests_per_minute / WINDOW_SECONDS / ((1 + _MAX_FAN_OUT) / 2)
    found = []
    at = draw.expovariate(rate)
    while at < seconds:
        found += [_request(case, draw, at, replicas) for _ in range(draw.randrange(1, _MAX_FAN_OUT + 1))]
        at += draw.expovariate(rate)
    return found


def _request(case: TrafficCase, draw: random.Random, at: float, replicas: int) -> TenantRequest:
    prompt_bytes = max(40, int(BYTES_PER_TOKEN * draw.lognormvariate(*_PROMPT_TOKENS)))
    prompt_tokens = max(1, round(prompt_bytes / draw.uniform(3.4, 4.6)))
    output_tokens = min(_MAX_OUTPUT_TOKENS, max(1, round(draw.lognormvariate(*_OUTPUT_TOKENS))))
    if case.max_tokens is not None:
        output_tokens = min(output_tokens, case.max_tokens)
    return TenantRequest(at, draw.randrange(replicas), prompt_bytes, prompt_tokens, output_tokens, case.max_tokens)


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


class LeasedLimiter:
    """The limits of one tenant, leased to the workers of several gateways.

    starts: the beginnings of its windows, in the order of time.
    """

    def __init__(self, limits: TenantLimits, clock: Clock, replicas: int, *, is_strict: bool) -> None:
        self.starts: list[float] = []
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

    async def admit(self, request: TenantRequest) -> RequestContext | None:
        """Reserves as a worker does, and waits for a slice if it must; None if it refuses."""
        gate = self._gateways[request.replica].gate
        context = self._context(request)
        try:
            if not gate.reserve(context):
                await gate.ensure_reserved(context)
        except GatewayError:
            return None
        self._note_window()
        return context

    async def settle(self, request: TenantRequest, context: RequestContext) -> None:
        """Settles with what the engine reports."""
        self._note_window()
        context.result.prompt_tokens = request.prompt_tokens
        context.result.output_tokens = request.output_tokens
        self._gateways[request.replica].gate.settle(context)

    async def stop(self) -> None:
        """Gives all slices back and stops the services."""
        for gateway in self._gateways:
            gateway.reporter.close()
            await gateway.service.stop()

    def _note_window(self) -> None:
        """Notes the beginning of this minute."""
        start = self._clock.wall() // WINDOW_SECONDS * WINDOW_SECONDS
        if not self.starts or self.starts[-1] < start:
            self.starts.append(start)

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
                dialect=CHAT,
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


def can_serve(enforcement: str, case: TrafficCase) -> bool:
    """Returns whether limits serve a case: strict tokens and budgets need `max_tokens`."""
    if enforcement == STRICT and case.max_tokens is None:
        return case.limits.tokens is None and case.limits.budget is None
    return True


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of a limit: what was used beyond it, and what was left of it.

    total: all that was used, by what the limit allowed in the time of the run.
    """

    overrun: float
    underuse: float
    total: float


@dataclass(slots=True)
class AdmittedRequests:
    """Times and tokens of admitted requests, and the windows of the limiter; in Unix seconds.

    nano_usd: what all admitted requests cost, in billionths of a US dollar.
    """

    admitted: list[tuple[float, float, int]] = field(default_factory=list)
    nano_usd: int = 0
    starts: Sequence[float] = ()
    refused: int = 0


def play(enforcement: str, case: TrafficCase, windows: int, seed: int) -> AdmittedRequests:
    """Plays the traffic of a case through limits of a kind, in simulated time."""
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(_play(loop, enforcement, case, windows, seed))
    finally:
        loop.close()


async def _play(loop: SimulatedLoop, enforcement: str, case: TrafficCase, windows: int, seed: int) -> AdmittedRequests:
    limiter = LeasedLimiter(case.limits, loop, REPLICAS, is_strict=enforcement == STRICT)
    found = AdmittedRequests()

    async def serve(request: TenantRequest) -> None:
        ticket = await limiter.admit(request)
        if ticket is None:
            found.refused += 1
            return
        admitted_at = loop.wall()
        await asyncio.sleep(request.seconds)
        await limiter.settle(request, ticket)
        found.admitted.append((admitted_at, loop.wall(), request.tokens))
        found.nano_usd += request.nano_usd

    first = (loop.wall() // WINDOW_SECONDS + 1) * WINDOW_SECONDS - loop.wall() + loop.time()
    tasks = []
    for request in tenant_requests(case, (windows + _WARM_UP_WINDOWS) * WINDOW_SECONDS, REPLICAS, seed):
        await asyncio.sleep(max(0.0, first + request.at - loop.time()))
        tasks.append(asyncio.create_task(serve(request)))
    await asyncio.gather(*tasks)
    await limiter.stop()
    found.starts = limiter.starts
    return found


def accuracy(found: AdmittedRequests, limits: TenantLimits, windows: int) -> Accuracy:
    """Returns the accuracy of the limit that binds, in all windows after the first one.

    With two limits, a window's use is that of the limit that is used more.
    """
    if limits.budget is not None:
        return _accuracy([found.nano_usd / limits.budget], windows=1)
    starts = list(found.starts)[_WARM_UP_WINDOWS:]
    begin = starts[0]
    end = begin + windows * WINDOW_SECONDS
    starts = [start for start in starts if start < end - WINDOW_SECONDS / 2]
    by_admission = _accuracy(_uses(found, limits, starts, end, by_end=False), windows)
    by_end = _accuracy(_uses(found, limits, starts, end, by_end=True), windows)
    return min(by_admission, by_end, key=lambda one: one.overrun + one.underuse)


def _uses(
    found: AdmittedRequests, limits: TenantLimits, starts: Sequence[float], end: float, *, by_end: bool
) -> list[float]:
    """Returns the used share of the limit in each window."""
    requests, tokens = [0] * len(starts), [0] * len(starts)
    for admitted_at, ended_at, used in found.admitted:
        at = ended_at if by_end else admitted_at
        number = bisect_right(starts, at) - 1
        if number >= 0 and at < end:
            requests[number] += 1
            tokens[number] += used
    shares = []
    for number in range(len(starts)):
        by_requests = 0.0 if limits.requests is None else requests[number] / limits.requests
        by_tokens = 0.0 if limits.tokens is None else tokens[number] / limits.tokens
        shares.append(max(by_requests, by_tokens))
    return shares


def _accuracy(shares: Sequence[float], windows: int) -> Accuracy:
    over = sum(max(0.0, share - 1.0) for share in shares) / windows
    kept = sum(min(1.0, share) for share in shares) / windows
    return Accuracy(over, max(0.0, 1.0 - kept), sum(shares) / windows)
