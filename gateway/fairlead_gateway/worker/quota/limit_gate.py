"""The gate of tenants' limits: reserves for each request before it starts, settles when it ends.

A request with room in all of its slices passes at once. Else it waits until the supervisor has got
a further slice, and is refused only if the store says that the limit is used up.
"""

from collections.abc import Callable
from typing import Final

from fairlead.tenants.model import Tenant
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.http.timers import TaskDeadline
from fairlead_gateway.quota.exchange import CLOSED, CONTENDED, EXHAUSTED, NOT_YET, UNAVAILABLE
from fairlead_gateway.worker.dispatch.router_registry import RoleRouters
from fairlead_gateway.worker.quota.amounts import (
    amount_of,
    expected_amounts,
    is_generating,
    most_amounts,
    tokens_until_disconnect,
    used_amounts,
)
from fairlead_gateway.worker.quota.output_estimate import OutputEstimator
from fairlead_gateway.worker.quota.refusals import describe_limit, limit_reached, limits_unavailable, rate_limit_headers
from fairlead_gateway.worker.quota.reservation import Amounts
from fairlead_gateway.worker.quota.tenant_limits import (
    LimitPlan,
    PlannedLimit,
    QuotaLink,
    TenantLimits,
    Waiter,
    missing_limit,
    take,
)
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.runtime import WorkerRuntime

_UNAVAILABLE_REASON: Final = "Redis does not answer"
_NOT_YET_REASON: Final = "the gateways restore what Redis has lost"


_OnRefused = Callable[[RequestContext, GatewayError], None]
_LOG_SECONDS: Final = 0.1


class LimitGate:
    """The limits of all tenants in one worker.

    link: None in a worker without a supervisor, whose limits grant nothing.
    on_refused: called with refused requests, at most ten times a second.
    """

    def __init__(
        self, runtime: WorkerRuntime, routers: RoleRouters, link: QuotaLink | None, on_refused: _OnRefused
    ) -> None:
        self._limits = runtime.limits
        self._loop = runtime.loop
        self._now = runtime.now
        self._routers = routers
        self._link = link
        self._on_refused = on_refused
        self._logged_at = 0.0
        self._estimator = OutputEstimator(runtime.limits.quota_output_tokens)
        self.tenants: dict[str, TenantLimits] = {}

    def limits_of(self, tenant: Tenant) -> TenantLimits:
        """Returns the leased limits of a tenant, as its latest document says."""
        limits = self.tenants.get(tenant.name)
        if limits is None:
            limits = self.tenants[tenant.name] = TenantLimits(tenant)
        elif limits.tenant is not tenant:
            limits.replace(tenant)
        return limits

    def reserve(self, context: RequestContext) -> bool:
        """Reserves for a request; False if it must wait for a slice (`ensure_reserved`).

        Raises GatewayError if a limit is used up, or if the tenant may not use the path.
        """
        tenant = context.tenant
        if tenant is None or not tenant.limits:
            return True
        limits = self.limits_of(tenant)
        plan = limits.plan(context.key_name or "", context.request.model_key)
        if not plan.limits:
            return True
        now = self._now()
        amounts = self._estimate(context, limits, plan, now)
        if limits.waiting and self._is_behind(plan, limits.waiting[0]):
            return False
        short = missing_limit(plan, amounts, now)
        if short is not None:
            amount = amount_of(amounts, short.unit)
            if amount > short.limit.amount or short.leased.is_used_up(amount, now):
                raise self._refusal(context, short, amount, now)
            return False
        context.reservation = take(plan, amounts, now)
        if not limits.is_active and self._link is not None:
            self._link.activate(limits)
        for planned in plan.limits:
            if planned.leased.is_low(now):
                self._request_slices(limits)
                break
        return True

    async def ensure_reserved(self, context: RequestContext) -> None:
        """Reserves for a request unless that is done already; waits for a slice if necessary.

        Raises GatewayError if the request is refused.
        """
        tenant = context.tenant
        if context.reservation is not None or tenant is None or not tenant.limits or self.reserve(context):
            return
        now = self._now()
        limits = self.limits_of(tenant)
        plan = limits.plan(context.key_name or "", context.request.model_key)
        amounts = self._estimate(context, limits, plan, now)
        short = missing_limit(plan, amounts, now) or limits.waiting[0].short_of
        if len(limits.waiting) >= self._limits.quota_waiting:
            raise self._refusal(context, short, amount_of(amounts, short.unit), now)
        waiter = Waiter(context, plan, amounts, self._loop.create_future(), short)
        limits.waiting.append(waiter)
        self._request_slices(limits)
        try:
            with TaskDeadline(self._loop, self._limits.quota_wait_seconds):
                await waiter.granted
        except TimeoutError:
            raise self._late(waiter) from None
        finally:
            if waiter in limits.waiting:
                limits.waiting.remove(waiter)
            if context.reservation is not None:
                context.reservation.waited_seconds = self._now() - now
                context.reservation.waited_for = describe_limit(waiter.short_of.limit, tenant.name)

    def settle(self, context: RequestContext) -> None:
        """Settles the reservation of a request that has ended. Later calls do nothing."""
        reservation = context.reservation
        if reservation is None or reservation.is_settled:
            return
        reservation.is_settled = True
        most, rate = reservation.estimate.output_tokens, self._limits.disconnected_tokens_per_second
        until = tokens_until_disconnect(context, most, self._now(), rate) if context.result.client_disconnected else 0
        used = used_amounts(context, reservation.estimate, until)
        for part in reservation.parts:
            part.leased.settle(part.slice, part.taken, amount_of(used, part.unit))
        tenant, result = context.tenant, context.result
        assert tenant is not None
        if result.output_tokens and not result.client_disconnected and result.error is None and is_generating(context):
            count = max(1, context.request.sequences)
            length = max(1, result.output_tokens // count)
            prompt = result.prompt_tokens or reservation.estimate.input_tokens
            self._estimator.learn(context.request.model_key, tenant.name, prompt, length, self._now())
        limits = self.tenants.get(tenant.name)
        if limits is not None and limits.waiting:
            self.serve_waiting(limits)

    def headers(self, context: RequestContext | None) -> str:
        """Returns the `x-ratelimit` headers of a request's tenant, as lines."""
        tenant = None if context is None else context.tenant
        if context is None or tenant is None or not tenant.limits:
            return ""
        limits = self.tenants.get(tenant.name)
        if limits is None:
            return ""
        return rate_limit_headers(limits.plan(context.key_name or "", context.request.model_key), self._now())

    def serve_waiting(self, limits: TenantLimits) -> None:
        """Starts or refuses waiting requests, in order; requests again what is still missing."""
        now = self._now()
        blocked: list[PlannedLimit] = []
        for waiter in list(limits.waiting):
            if waiter.granted.done() or self._is_blocked(waiter.plan, blocked):
                continue
            short = missing_limit(waiter.plan, waiter.estimate, now)
            if short is None:
                waiter.context.reservation = take(waiter.plan, waiter.estimate, now)
                waiter.granted.set_result(waiter.context.reservation)
                limits.waiting.remove(waiter)
                continue
            waiter.short_of = short
            amount = amount_of(waiter.estimate, short.unit)
            leased = short.leased
            if leased.status == UNAVAILABLE or leased.is_used_up(amount, now):
                waiter.granted.set_exception(self._refusal(waiter.context, short, amount, now))
                limits.waiting.remove(waiter)
            else:
                blocked.append(short)
        if blocked and limits.retry_at <= now:
            status = blocked[0].leased.status
            pause = self._limits.quota_retry_seconds if status in (CONTENDED, NOT_YET, EXHAUSTED, CLOSED) else 0.0
            limits.retry_at = now + pause
            self._loop.call_later(pause, self._retry, limits)

    def close(self) -> None:
        """Refuses what waits."""
        for limits in self.tenants.values():
            for waiter in limits.waiting:
                if not waiter.granted.done():
                    waiter.granted.cancel()

    def _request_slices(self, limits: TenantLimits) -> None:
        if self._link is not None:
            self._link.request_slices(limits)

    def _retry(self, limits: TenantLimits) -> None:
        if limits.waiting:
            self._request_slices(limits)

    def _estimate(self, context: RequestContext, limits: TenantLimits, plan: LimitPlan, now: float) -> Amounts:
        request = context.request
        # Of a path that is only passed on, the output is unknown; `otherPaths` admits it.
        counts_output = plan.counts_output and not request.is_passthrough
        if limits.is_strict:
            margin = self._limits.quota_prompt_margin
            return most_amounts(context, margin, needs_input=plan.counts_input, needs_output=counts_output)
        prompt = int(self._routers.prompt_tokens(request.model_key, context.route_request)) + 1
        output = 0
        if counts_output:
            output = self._estimator.estimate(request.model_key, limits.tenant.name, prompt, now)
        return expected_amounts(context, prompt, output)

    def _refusal(self, context: RequestContext, short: PlannedLimit, amount: int, now: float) -> GatewayError:
        """Returns the error of a request that needs more of a limit than is left."""
        tenant = context.tenant
        assert tenant is not None
        if short.leased.status == UNAVAILABLE:
            return limits_unavailable(_UNAVAILABLE_REASON)
        error = limit_reached(short, amount, tenant, now)
        if now - self._logged_at >= _LOG_SECONDS:  # a flood of refusals must not fill the log
            self._logged_at = now
            self._on_refused(context, error)
        return error

    def _late(self, waiter: Waiter) -> GatewayError:
        """Returns the error of a request that has waited too long for a slice."""
        short, now = waiter.short_of, self._now()
        if short.leased.status in (CONTENDED, EXHAUSTED, CLOSED):
            return self._refusal(waiter.context, short, amount_of(waiter.estimate, short.unit), now)
        return limits_unavailable(_NOT_YET_REASON if short.leased.status == NOT_YET else _UNAVAILABLE_REASON)

    def _is_behind(self, plan: LimitPlan, first: Waiter) -> bool:
        """Returns whether an earlier request waits for one of the limits."""
        return any(planned.leased is first.short_of.leased for planned in plan.limits)

    def _is_blocked(self, plan: LimitPlan, blocked: list[PlannedLimit]) -> bool:
        return any(planned.leased is other.leased for planned in plan.limits for other in blocked)
