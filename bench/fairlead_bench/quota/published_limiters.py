"""The limiters of AIBrix, Envoy AI Gateway and LiteLLM as presets, in simulated time.

Each has the keys, windows and order of commands of the published source. Each command takes a round
trip to a shared Redis. Refusals leave behind what they leave there.

Source:

- AIBrix (e3e10f9e): `pkg/plugins/gateway/gateway_ratelimit.go`, `ratelimiter/redis.go`.
- Envoy's rate limit service (f2fb1577): `src/redis/fixed_cache_impl.go`,
  `src/limiter/base_limiter.go`. Costs are those of the documentation of Envoy AI Gateway
  (c217da8a): nothing for a request, the reported tokens at its end.
- LiteLLM 1.106.2: `proxy/hooks/parallel_request_limiter_v3.py`; budgets, which need its database,
  `proxy/spend_tracking/budget_reservation.py` with the default policy.
"""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from fairlead_bench.quota.tenant_traffic import (
    BYTES_PER_TOKEN,
    INPUT_TOKEN_NANO_USD,
    OUTPUT_TOKEN_NANO_USD,
    WINDOW_SECONDS,
    TenantLimits,
    TenantRequest,
)

ROUND_TRIP_SECONDS: Final = 0.0005
_UNLIMITED: Final = 1 << 60
_NO_MAX_TOKENS: Final = 1_024
"""LiteLLM's output estimate for a request without `max_tokens`, if the limit is above 4,096."""
_NO_MAX_TOKENS_IN_BUDGETS: Final = 16_384
"""LiteLLM's output estimate for budgets, for a model without `max_output_tokens`."""


class Limiter(ABC):
    """A limiter of one tenant over several gateways.

    wall: returns the time in Unix seconds.
    starts: the beginnings of its windows, in the order of time.
    """

    def __init__(self, limits: TenantLimits, wall: Callable[[], float]) -> None:
        self.requests = _UNLIMITED if limits.requests is None else limits.requests
        self.tokens = _UNLIMITED if limits.tokens is None else limits.tokens
        self.wall = wall
        self.starts: list[float] = []

    @abstractmethod
    async def admit(self, request: TenantRequest) -> object | None:
        """Returns a ticket for a request, or None if it is refused."""

    @abstractmethod
    async def settle(self, request: TenantRequest, ticket: object) -> None:
        """Counts what an answer used, after its end."""

    async def stop(self) -> None:  # noqa: B027  # most have nothing to stop
        """Ends what runs for the limiter."""

    def _calendar_window(self) -> int:
        """Returns the number of the minute, and notes its beginning."""
        number = int(self.wall() // WINDOW_SECONDS)
        start = number * WINDOW_SECONDS
        if not self.starts or self.starts[-1] < start:
            self.starts.append(start)
        return number


class SimulatedRedis:
    """Integers that expire."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._values: dict[str, int] = {}
        self._expiry: dict[str, float] = {}

    def get(self, key: str) -> int | None:
        """Returns a value; None if there is none."""
        if self._wall() >= self._expiry.get(key, math.inf):
            self.remove(key)
        return self._values.get(key)

    def remove(self, key: str) -> None:
        """Removes a value."""
        self._values.pop(key, None)
        self._expiry.pop(key, None)

    def set(self, key: str, value: int, seconds: float) -> None:
        """Sets a value and when it expires."""
        self._values[key] = value
        self._expiry[key] = self._wall() + seconds

    def increment(self, key: str, amount: int, seconds: float, *, renews: bool) -> int:
        """Adds to a value and returns it.

        renews: it expires that many seconds from now; else only if it has no expiry.
        """
        value = self._values[key] = (self.get(key) or 0) + amount
        if renews or key not in self._expiry:
            self._expiry[key] = self._wall() + seconds
        return value


class AibrixLimiter(Limiter):
    """AIBrix: reads, then increments; tokens are counted when the answer has ended."""

    def __init__(self, limits: TenantLimits, wall: Callable[[], float]) -> None:
        super().__init__(limits, wall)
        self.redis = SimulatedRedis(wall)

    async def admit(self, request: TenantRequest) -> object | None:
        """Checks and counts requests, then checks tokens; the request stays counted if refused."""
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        if (self.redis.get(f"rpm{self._calendar_window() % 64}") or 0) >= self.requests:
            return None
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        self.redis.increment(f"rpm{self._calendar_window() % 64}", 1, WINDOW_SECONDS, renews=True)
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        if (self.redis.get(f"tpm{self._calendar_window() % 64}") or 0) >= self.tokens:
            return None
        return True

    async def settle(self, request: TenantRequest, ticket: object) -> None:
        """Counts tokens in the minute in which the answer ends."""
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        self.redis.increment(f"tpm{self._calendar_window() % 64}", request.tokens, WINDOW_SECONDS, renews=True)


class EnvoyLimiter(Limiter):
    """Envoy AI Gateway with Envoy's rate limit service: one increment, then a comparison."""

    def __init__(self, limits: TenantLimits, wall: Callable[[], float]) -> None:
        super().__init__(limits, wall)
        self.redis = SimulatedRedis(wall)

    async def admit(self, request: TenantRequest) -> object | None:
        """Adds one to requests and nothing to tokens, also if it refuses the request then."""
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        window = self._calendar_window()
        requests = self.redis.increment(f"rpm{window}", 1, WINDOW_SECONDS, renews=True)
        tokens = self.redis.increment(f"tpm{window}", 0, WINDOW_SECONDS, renews=True)
        return True if requests <= self.requests and tokens <= self.tokens else None

    async def settle(self, request: TenantRequest, ticket: object) -> None:
        """Counts tokens in the minute in which the stream is done."""
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        self.redis.increment(f"tpm{self._calendar_window()}", request.tokens, WINDOW_SECONDS, renews=True)


class LitellmLimiter(Limiter):
    """LiteLLM's third limiter: reserves an estimate, and settles the difference.

    Its windows begin with their first request. A refund goes to the window of that moment.
    """

    def __init__(self, limits: TenantLimits, wall: Callable[[], float]) -> None:
        super().__init__(limits, wall)
        self.redis = SimulatedRedis(wall)
        self._mirrors: dict[int, SimulatedRedis] = {}

    async def admit(self, request: TenantRequest) -> object | None:
        """Counts the request, also if it is refused; then reserves tokens, or leaves them."""
        if self.requests < _UNLIMITED:
            mirror = self._mirrors.setdefault(request.replica, SimulatedRedis(self.wall))
            if (mirror.get("requests") or 0) > self.requests:
                return None
            await asyncio.sleep(ROUND_TRIP_SECONDS)
            counted = self._count_request()
            known = mirror.get("requests")
            mirror.increment("requests", counted - (known or 0), WINDOW_SECONDS, renews=False)
            if counted > self.requests:
                return None
        if self.tokens == _UNLIMITED:
            return 0
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        return self._reserve(request)

    async def settle(self, request: TenantRequest, ticket: object) -> None:
        """Adds what was used beyond the reservation, or takes back what was not."""
        assert isinstance(ticket, int)
        if self.tokens == _UNLIMITED or request.tokens == ticket:
            return
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        self.redis.increment("tokens", request.tokens - ticket, WINDOW_SECONDS, renews=False)

    def _count_request(self) -> int:
        if self._begins_window():
            self.redis.set("requests", 1, WINDOW_SECONDS)
            return 1
        return self.redis.increment("requests", 1, WINDOW_SECONDS, renews=False)

    def _reserve(self, request: TenantRequest) -> int | None:
        prompt = max(1, int(request.prompt_bytes // BYTES_PER_TOKEN))
        output = max(prompt, _NO_MAX_TOKENS) if request.max_tokens is None else request.max_tokens
        estimate = prompt + output
        window = self.redis.get("window")
        is_over = window is None or int(self.wall()) - window >= WINDOW_SECONDS
        used = 0 if is_over else self.redis.get("tokens") or 0
        if used + estimate > self.tokens:
            return None
        if self._begins_window():
            self.redis.set("tokens", estimate, WINDOW_SECONDS)
        else:
            self.redis.increment("tokens", estimate, WINDOW_SECONDS, renews=False)
        return estimate

    def _begins_window(self) -> bool:
        """Returns whether a new window begins now; then it has begun."""
        now = int(self.wall())
        start = self.redis.get("window")
        if start is not None and now - start < WINDOW_SECONDS:
            return False
        self.redis.remove("requests")
        self.redis.remove("tokens")
        self.redis.set("window", now, WINDOW_SECONDS)
        self.starts.append(self.wall())
        return True


class LitellmBudget(Limiter):
    """LiteLLM's budget: adds an estimated cost to a counter, and settles the difference.

    An estimate that exceeds what is left becomes what is left. So one request may hold it all, and
    may cost more.
    """

    def __init__(self, limits: TenantLimits, wall: Callable[[], float]) -> None:
        super().__init__(limits, wall)
        assert limits.budget is not None
        self._budget = limits.budget
        self.spent = 0

    async def admit(self, request: TenantRequest) -> object | None:
        """Reads the counter, adds the estimate, then takes back what exceeds the budget."""
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        if self.spent >= self._budget:
            return None
        output = _NO_MAX_TOKENS_IN_BUDGETS if request.max_tokens is None else request.max_tokens
        estimate = request.prompt_tokens * INPUT_TOKEN_NANO_USD + output * OUTPUT_TOKEN_NANO_USD
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        self.spent += estimate
        before = self.spent - estimate
        if self.spent <= self._budget:
            return estimate
        reserved = max(0, self._budget - before)
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        self.spent -= estimate - reserved
        return reserved or None

    async def settle(self, request: TenantRequest, ticket: object) -> None:
        """Replaces the reservation by the cost."""
        assert isinstance(ticket, int)
        await asyncio.sleep(ROUND_TRIP_SECONDS)
        self.spent += request.nano_usd - ticket
