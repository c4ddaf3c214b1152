"""The leased limits of one tenant in a worker."""

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import Final

from fairlead.adapters.model import LoraAdapter
from fairlead.tenants.model import Enforcement, Limit, Tenant
from fairlead_gateway.limits.worker.limit_plan import Amounts, LeasedLimit, LimitPlan, Reservation
from fairlead_gateway.request_context import RequestContext

_MAX_PLANS: Final = 1_024


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
        short_of: LeasedLimit,
    ) -> None:
        self.context = context
        self.plan = plan
        self.estimate = estimate
        self.granted = granted
        self.short_of = short_of


class TenantLimits:
    """The leased limits of one tenant, and the requests that wait for them.

    is_active: the tenant's use is reported; see `QuotaLink`.
    retries: slices will be requested again, by a timer that has not fired yet.
    """

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.is_strict = tenant.enforcement is Enforcement.STRICT
        self.leased: dict[str, LeasedLimit] = {}
        self.waiting: deque[Waiter] = deque()
        self.retries = False
        self.is_active = False
        self._plans: dict[tuple[str, str], LimitPlan] = {}
        self._last_key = self._last_model = ""
        self._last_plan: LimitPlan | None = None
        self.replace(tenant)

    def replace(self, tenant: Tenant) -> None:
        """Replaces the tenant; slices of limits that stay are kept."""
        self.tenant = tenant
        self.is_strict = tenant.enforcement is Enforcement.STRICT
        known, self.leased = self.leased, {}
        for limit in tenant.limits:
            leased = known.get(limit.id)
            if leased is None:
                leased = LeasedLimit(limit)
            else:
                leased.replace(limit)
            self.leased[limit.id] = leased
        self._plans.clear()
        self._last_plan = None

    def plan(self, key: str, model: str, adapter: LoraAdapter | None = None) -> LimitPlan:
        """Returns the limits that apply to requests with a key for a model, or for its adapter."""
        if adapter is not None:
            return self._adapter_plan(key, model, adapter)
        last = self._last_plan
        if last is not None and key is self._last_key and model is self._last_model:
            return last
        plan = self._plans.get((key, model))
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[key, model] = self._create_plan(self.tenant.limits_of(key, model))
        self._last_key, self._last_model, self._last_plan = key, model, plan
        return plan

    def _adapter_plan(self, key: str, model: str, adapter: LoraAdapter) -> LimitPlan:
        name = f"{model.partition('/')[0]}/{adapter.name}"
        place = f"{model}\0{name}"
        plan = self._plans.get((key, place))
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[key, place] = self._create_plan(self.tenant.limits_of(key, model, name))
        return plan

    def _create_plan(self, limits: Iterable[Limit]) -> LimitPlan:
        return LimitPlan([self.leased[limit.id] for limit in limits], is_strict=self.is_strict)

    def restart(self) -> None:
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
    def report_soon(self, limits: TenantLimits) -> None:
        """Reports what the tenant has used without waiting for the interval."""

    @abstractmethod
    def activate(self, limits: TenantLimits) -> None:
        """Reports what the tenant uses from now on, and sets `is_active` until that ends."""
