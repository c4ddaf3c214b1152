"""The leased limits of one tenant in a worker."""

import asyncio
from abc import abstractmethod
from collections import deque
from typing import Final

from fairlead.tenants.model import Enforcement, Limit, Tenant
from fairlead_gateway.quota.slices import LeasedLimit
from fairlead_gateway.worker.quota.amounts import COST, INPUT_TOKENS, OUTPUT_TOKENS, REQUESTS, TOKENS, UNITS, amount_of
from fairlead_gateway.worker.quota.reservation import Amounts, Reservation, ReservedPart
from fairlead_gateway.worker.request_context import RequestContext

_MAX_PLANS: Final = 1_024


class PlannedLimit:
    """A limit that applies to a request, with its slices."""

    __slots__ = ("leased", "limit", "unit")

    def __init__(self, limit: Limit, leased: LeasedLimit) -> None:
        self.limit = limit
        self.leased = leased
        self.unit: int = UNITS.index(limit.unit)


class LimitPlan:
    """The limits that apply to requests with one key for one model.

    counts_input, counts_output: one of them counts tokens of the prompt, or of the answer.
    request_limit, token_limit: those that the `x-ratelimit` headers show; None without.
    """

    __slots__ = ("counts_input", "counts_output", "limits", "request_limit", "token_limit")

    def __init__(self, limits: list[PlannedLimit]) -> None:
        self.limits = limits
        hard = [planned for planned in limits if not planned.limit.is_soft]
        self.counts_input = any(planned.unit in (INPUT_TOKENS, TOKENS, COST) for planned in limits)
        self.counts_output = any(planned.unit in (OUTPUT_TOKENS, TOKENS, COST) for planned in limits)
        self.request_limit = _shown(hard, (REQUESTS,))
        self.token_limit = _shown(hard, (TOKENS,)) or _shown(hard, (INPUT_TOKENS, OUTPUT_TOKENS))


def _shown(limits: list[PlannedLimit], units: tuple[int, ...]) -> PlannedLimit | None:
    """Returns the limit with the shortest window, of those the smallest."""
    order = ("Minute", "Day", "Month")
    windowed = [planned for planned in limits if planned.unit in units and planned.limit.window is not None]
    return min(windowed, key=lambda one: (order.index(one.limit.window or "Month"), one.limit.amount), default=None)


class Waiter:
    """A request that waits for slices.

    short_of: the limit that it waits for.
    """

    __slots__ = ("context", "estimate", "granted", "plan", "short_of")

    def __init__(
        self,
        context: RequestContext,
        plan: LimitPlan,
        estimate: Amounts,
        granted: "asyncio.Future[Reservation]",
        short_of: PlannedLimit,
    ) -> None:
        self.context = context
        self.plan = plan
        self.estimate = estimate
        self.granted = granted
        self.short_of = short_of


class TenantLimits:
    """The leased limits of one tenant, and the requests that wait for them.

    is_active: the tenant's use is reported; see `QuotaLink`.
    """

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.is_strict = tenant.enforcement is Enforcement.STRICT
        self.leased: dict[str, LeasedLimit] = {}
        self.waiting: deque[Waiter] = deque()
        self.retry_at = 0.0
        self.is_active = False
        self._plans: dict[tuple[str, str], LimitPlan] = {}
        self.replace(tenant)

    def replace(self, tenant: Tenant) -> None:
        """Replaces the tenant; slices of limits that stay are kept."""
        self.tenant = tenant
        self.is_strict = tenant.enforcement is Enforcement.STRICT
        known, self.leased = self.leased, {}
        for limit in tenant.limits:
            leased = known.get(limit.id)
            if leased is None:
                leased = LeasedLimit(has_window=limit.window is not None, is_soft=limit.is_soft)
            self.leased[limit.id] = leased
        self._plans.clear()

    def plan(self, key: str, model: str) -> LimitPlan:
        """Returns the limits that apply to requests with a key for a model."""
        plan = self._plans.get((key, model))
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            limits = [PlannedLimit(limit, self.leased[limit.id]) for limit in self.tenant.limits_of(key, model)]
            plan = self._plans[key, model] = LimitPlan(limits)
        return plan

    def restart(self) -> None:
        """Drops all slices: the worker goes on under another holder's name."""
        for leased in self.leased.values():
            leased.restart()


class QuotaLink:
    """The link to the store: the supervisor, which exchanges with Redis.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    @abstractmethod
    def request_slices(self, limits: TenantLimits) -> None:
        """Requests what the tenant's requests need."""

    @abstractmethod
    def activate(self, limits: TenantLimits) -> None:
        """Reports what the tenant uses from now on, and sets `is_active` until that ends."""


def missing_limit(plan: LimitPlan, amounts: Amounts, now: float) -> PlannedLimit | None:
    """Returns the first limit whose slice is too small for a request; None if all have room."""
    for planned in plan.limits:
        if not planned.leased.has(amount_of(amounts, planned.unit), now):
            return planned
    return None


def take(plan: LimitPlan, amounts: Amounts, now: float) -> Reservation:
    """Reserves what a request needs of each limit; all of them have room."""
    parts = []
    for planned in plan.limits:
        taken = amount_of(amounts, planned.unit)
        leased = planned.leased
        parts.append(ReservedPart(leased, leased.take(taken, now), planned.unit, taken))
    return Reservation(amounts, parts)
