"""The gate of tenants' limits: reserves for each request before it starts, settles when it ends.

A request with room in all of its slices passes at once. Else it waits until the supervisor has got
a further slice, and is refused only if the store says that the limit is used up.
"""

import math
from collections.abc import Callable
from typing import Final

from fairlead.tenants.model import Limit, LimitUnit, Tenant
from fairlead.units import format_exact_usd, format_usd
from fairlead_gateway.admission.admission_policy import ALL_LEARNED_ANSWERS, LEARNED_ANSWER_INTERVAL
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.errors import (
    NO_RETRY,
    BadRequest,
    BudgetSpent,
    ConcurrencyReached,
    GatewayError,
    LimitReached,
    LimitsUnavailable,
)
from fairlead_gateway.http.timers import TaskDeadline
from fairlead_gateway.limits.exchange import CLOSED, CONTENDED, EXHAUSTED, GRANTED, NOT_YET, UNAVAILABLE
from fairlead_gateway.limits.worker.amounts import (
    TABLE_SECONDS,
    OutputEstimator,
    expected_amounts,
    most_amounts,
    prompt_class,
    used_amounts,
)
from fairlead_gateway.limits.worker.limit_plan import REQUESTS, Amounts, LeasedLimit, LimitPlan, missing_limit, take
from fairlead_gateway.limits.worker.tenant_limits import QuotaLink, TenantLimits, Waiter
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.router_registry import RoleRouters
from fairlead_gateway.runtime import WorkerRuntime

_RETURNED_RETRY_SECONDS: Final = 1
_FOLLOWED_SECONDS: Final = 60
"""Longest wait that all SDKs follow. Of longer ones, some send again at once and others sleep for
days.

Source: openai-python 3555, earendil-works/pi 6912.
"""

QUOTA_WAIT_SECONDS: Final = 2.0
"""Limit: a request waits this long for a slice that others hold, or for Redis; then 429 or 503."""
QUOTA_RETRY_SECONDS: Final = 0.05
"""Limit: interval at which a slice that others hold is asked for again."""
QUOTA_WAITING: Final = 1_024
"""Limit: requests of one tenant in a worker that wait for a slice; the next gets 429."""
QUOTA_PROMPT_MARGIN: Final = 256
"""Limit: tokens that a chat template may add to a prompt, in strict mode; its bytes bound the rest.
"""

_UNAVAILABLE_REASON: Final = "Redis does not answer"
_NOT_YET_REASON: Final = "the gateways restore what Redis has lost"

_OnRefused = Callable[[RequestContext, GatewayError], None]
_LOG_SECONDS: Final = 0.1
# Why: compiled code looks up the names of other modules each time.
_ALL_LEARNED: Final = ALL_LEARNED_ANSWERS
_LEARNED_INTERVAL: Final = LEARNED_ANSWER_INTERVAL


def describe_limit(limit: Limit, tenant: str) -> str:
    """Returns a limit as text: `600 requests per minute of tenant acme, key ci`."""
    amount = format_exact_usd(limit.amount) if limit.unit is LimitUnit.COST else str(limit.amount)
    text = f"{amount} {limit.unit.noun}"
    if limit.window is not None:
        text += f" per {limit.window.value.lower()}"
    text += f" of tenant {tenant}"
    if limit.key is not None:
        text += f", key {limit.key}"
    if limit.model is not None:
        text += f", model {limit.model}"
    return text


def limit_reached(leased: LeasedLimit, amount: int, tenant: Tenant, now: float) -> GatewayError:
    """Returns the error for a request that needs `amount` of a limit that has less left."""
    limit = leased.limit
    if leased.status == CLOSED:
        return limits_unavailable("Redis lost what was used in this window, which is strict", leased.ends_at - now)
    kind, hint = LimitReached, "send it again after retry-after"
    if limit.unit is LimitUnit.COST:
        kind, hint = BudgetSpent, "the operator of the gateway can raise the budget"
    elif limit.window is None:
        kind, hint = ConcurrencyReached, "wait until earlier requests have ended"
    if amount > limit.amount:
        is_cost = limit.unit is LimitUnit.COST
        needs = f"; this request may {f'cost {format_usd(amount)}' if is_cost else f'need {amount} of them'}"
        hint = "send a shorter request, or a smaller max_tokens"
    else:
        needs = ""
    seconds = leased.ends_at - now if limit.window is not None else _RETURNED_RETRY_SECONDS
    return kind(
        f"the limit of {describe_limit(limit, tenant.name)} is reached{needs}",
        hint=hint,
        headers=_retry_headers(seconds, is_possible=not needs),
    )


def limit_contended(leased: LeasedLimit, tenant: Tenant) -> GatewayError:
    """Returns the error for a request that has waited too long behind others for what is left of a
    limit.
    """
    return LimitReached(
        f"too many requests wait for what is left of the limit of {describe_limit(leased.limit, tenant.name)}",
        hint="send fewer requests at the same time",
        retry_after=_RETURNED_RETRY_SECONDS,
    )


def limits_unavailable(reason: str, seconds: float = 1.0) -> LimitsUnavailable:
    """Returns the error for a request whose limits are not known."""
    return LimitsUnavailable(
        f"the limits of this tenant cannot be read: {reason}",
        hint="the operator of the gateway sees the cause on its management port",
        headers=_retry_headers(seconds),
    )


def _retry_headers(seconds: float, *, is_possible: bool = True) -> tuple[tuple[str, str], ...]:
    """Returns when to send again, and `x-should-retry: false` if SDKs should not do it themselves.

    is_possible: False for a request that is refused at any time.
    """
    retry_after = ("retry-after", str(max(1, math.ceil(min(seconds, 40 * 86_400.0)))))
    return (retry_after,) if is_possible and seconds <= _FOLLOWED_SECONDS else (retry_after, NO_RETRY)


class LimitGate:
    """The limits of all tenants in one worker.

    link: None in a worker without a supervisor, whose limits grant nothing.
    on_refused: called with refused requests, at most ten times a second.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        routers: RoleRouters,
        link: QuotaLink | None,
        on_refused: _OnRefused,
        retry_seconds: float = QUOTA_RETRY_SECONDS,
    ) -> None:
        self._retry_seconds = retry_seconds
        self._prompt_margin: int = QUOTA_PROMPT_MARGIN
        self._loop = runtime.loop
        self._now = runtime.now
        self._routers = routers
        self._link = link
        self._on_refused = on_refused
        self._logged_at = 0.0
        self._estimator = OutputEstimator()
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
        """Reserves for a request of a tenant with limits.

        False if it must wait for a slice (`ensure_reserved`).

        Raises GatewayError if a limit is used up, or if the tenant may not use the path.
        """
        tenant = context.policy.tenant
        limits = self.tenants.get(context.caller)
        if limits is None or limits.tenant is not tenant:
            limits = self.limits_of(tenant)
        plan = limits.plan(context.key_name or "", context.request.model_key, context.request.adapter)
        if not plan.limits:
            return True
        now = self._now()
        amounts = self._estimate(context, plan, now)
        if limits.waiting and self._is_behind(plan, limits.waiting[0]):
            return False  # small requests would else take each slice before a large one that waits
        short = missing_limit(plan, amounts, now)
        if short is not None:
            amount = amounts.of(short.unit)
            if amount > short.amount or short.is_used_up(amount, now):
                raise self._refuse(context, short, amount, now)
            return False
        context.reservation = take(plan, amounts, now)
        if not limits.is_active and self._link is not None:
            self._link.activate(limits)
        for leased in plan.limits:
            if leased.is_low(now):
                self._request_slices(limits)
                break
        return True

    def count_unreserved(self, caller: Caller | None) -> None:
        """Counts a request that reserves nothing.

        It waits for no slice: it may exceed that of the worker. Raises GatewayError if a limit of
        requests is used up.
        """
        if caller is None or not caller.tenant.limits:
            return
        limits, now = self.limits_of(caller.tenant), self._now()
        for leased in limits.plan(caller.key, "").limits:
            if leased.unit != REQUESTS:
                continue
            is_current = leased.is_known and leased.open_until <= now < leased.ends_at
            if is_current and leased.available + leased.current.free < 1:
                raise limit_reached(leased, 1, limits.tenant, now)
            leased.settle(leased.take(1, now), 1, 1)
            if leased.is_low(now):
                self._request_slices(limits)

    def count_refused(self, caller: Caller | None, error: GatewayError) -> GatewayError:
        """Counts a request that the gateway refuses because it is wrong.

        Returns the error for the client: that of a limit of requests, if one is used up.
        """
        if isinstance(error, BadRequest):
            try:
                self.count_unreserved(caller)
            except GatewayError as reached:
                return reached
        return error

    async def ensure_reserved(self, context: RequestContext) -> None:
        """Reserves for a request unless that is done already; waits for a slice if necessary.

        Raises GatewayError if the request is refused.
        """
        tenant = context.tenant
        if context.reservation is not None or tenant is None or self.reserve(context):
            return
        now = self._now()
        limits = self.limits_of(tenant)
        plan = limits.plan(context.key_name or "", context.request.model_key, context.request.adapter)
        amounts = self._estimate(context, plan, now)
        short = missing_limit(plan, amounts, now) or limits.waiting[0].short_of
        if len(limits.waiting) >= QUOTA_WAITING:
            raise self._refuse(context, short, amounts.of(short.unit), now)
        waiter = Waiter(context, plan, amounts, self._loop.create_future(), short)
        limits.waiting.append(waiter)
        self._request_slices(limits)
        try:
            with TaskDeadline(self._loop, QUOTA_WAIT_SECONDS):
                await waiter.granted
        except TimeoutError:
            raise self._late(waiter, now) from None
        finally:
            self._end_wait(limits, waiter, now)

    def _end_wait(self, limits: TenantLimits, waiter: Waiter, since: float) -> None:
        """Records how long a request has waited.

        Why a method: behind `await`, compiled code still takes a reservation for None that was None
        before.
        """
        if waiter in limits.waiting:
            limits.waiting.remove(waiter)
        reservation = waiter.context.reservation
        if reservation is not None:
            reservation.waited_seconds = self._now() - since
            reservation.waited_for = describe_limit(waiter.short_of.limit, limits.tenant.name)

    def settle(self, context: RequestContext) -> None:
        """Settles the reservation of a request that has ended. Later calls do nothing."""
        reservation = context.reservation
        if reservation is None or reservation.is_settled:
            return
        plan, result = reservation.plan, context.result
        is_behind = reservation.settle(used_amounts(context, plan, reservation.estimate))
        if result.output_tokens and result.is_complete and context.request.dialect.generates:
            plan.answers += 1
            if plan.answers <= _ALL_LEARNED or plan.answers % _LEARNED_INTERVAL == 0:
                self._learn(context, reservation.estimate.input_tokens, result.output_tokens)
        limits = self.tenants.get(context.caller)
        if limits is None:
            return
        if is_behind and self._link is not None:
            self._link.report_soon(limits)
        if limits.waiting:
            self.serve_waiting(limits)

    def estimate_prompt(self, context: RequestContext) -> int:
        """Returns the tokens that the prompt of a request probably has."""
        return int(self._routers.caller_tokens(context.request.model_key, context.caller, context.route_request))

    def headers(self, context: RequestContext | None, now: float) -> str:
        """Returns the `x-ratelimit` headers of a request's tenant, as lines."""
        if context is None or not context.policy.has_limits:
            return ""
        if context.reservation is not None:
            return context.reservation.plan.headers(now)
        limits = self.tenants.get(context.caller)
        if limits is None:
            return ""
        plan = limits.plan(context.key_name or "", context.request.model_key, context.request.adapter)
        return plan.refusal_headers(context.refused_by, now)

    def serve_waiting(self, limits: TenantLimits) -> None:
        """Starts or refuses waiting requests, in order; requests again what is still missing."""
        now = self._now()
        blocked: list[LeasedLimit] = []
        for waiter in list(limits.waiting):
            if waiter.granted.done() or any(leased is other for leased in waiter.plan.limits for other in blocked):
                continue
            short = missing_limit(waiter.plan, waiter.estimate, now)
            if short is None:
                waiter.context.reservation = take(waiter.plan, waiter.estimate, now)
                waiter.granted.set_result(waiter.context.reservation)
                limits.waiting.remove(waiter)
                continue
            waiter.short_of = short
            amount = waiter.estimate.of(short.unit)
            is_away = short.status == UNAVAILABLE and now - short.away_since >= QUOTA_WAIT_SECONDS
            if is_away or short.is_used_up(amount, now):
                waiter.granted.set_exception(self._refuse(waiter.context, short, amount, now))
                limits.waiting.remove(waiter)
            else:
                blocked.append(short)
        if blocked and not limits.retries:
            status = blocked[0].status
            pause = self._retry_seconds if status in (CONTENDED, NOT_YET, EXHAUSTED, CLOSED, UNAVAILABLE) else 0.0
            limits.retries = True
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
        limits.retries = False
        if limits.waiting:
            self._request_slices(limits)

    def _estimate(self, context: RequestContext, plan: LimitPlan, now: float) -> Amounts:
        if not context.request.dialect.is_computed:
            return expected_amounts(context, plan, 0, 0)
        if plan.is_strict:
            return most_amounts(context, plan, self._prompt_margin)
        request = context.request
        prompt = self.estimate_prompt(context) + 1
        # Of a path without counts, the output is unknown; `otherPaths` admits it.
        if not plan.counts_output or request.is_passthrough:
            return expected_amounts(context, plan, prompt, 0)
        size = prompt_class(prompt)
        if size != plan.expected_class or now - plan.expected_at >= TABLE_SECONDS:
            plan.expected_tokens = self._estimator.estimate(request.model_key, context.caller, prompt, now)
            plan.expected_class, plan.expected_at = size, now
        return expected_amounts(context, plan, prompt, plan.expected_tokens)

    def _learn(self, context: RequestContext, prompt_tokens: int, output_tokens: int) -> None:
        """Counts a complete answer.

        prompt_tokens: as estimated.
        """
        length = max(1, output_tokens // context.route_request.sequences)
        prompt = context.result.prompt_tokens or prompt_tokens
        self._estimator.learn(context.request.model_key, context.caller, prompt, length, self._now())

    def _refuse(self, context: RequestContext, short: LeasedLimit, amount: int, now: float) -> GatewayError:
        """Returns the error of a request that needs more of a limit than is left."""
        context.refused_by = short
        tenant = context.tenant
        assert tenant is not None
        if short.status == UNAVAILABLE:
            return limits_unavailable(_UNAVAILABLE_REASON)
        error = limit_reached(short, amount, tenant, now)
        if now - self._logged_at >= _LOG_SECONDS:  # a flood of refusals must not fill the log
            self._logged_at = now
            self._on_refused(context, error)
        return error

    def _late(self, waiter: Waiter, since: float) -> GatewayError:
        """Returns the error of a request that has waited too long for a slice."""
        short, now, tenant = waiter.short_of, self._now(), waiter.context.tenant
        if short.status == GRANTED and short.status_at >= since and tenant is not None:
            waiter.context.refused_by = short
            return limit_contended(short, tenant)  # the store answers, and others were first
        if short.status in (CONTENDED, EXHAUSTED, CLOSED):
            return self._refuse(waiter.context, short, waiter.estimate.of(short.unit), now)
        return limits_unavailable(_NOT_YET_REASON if short.status == NOT_YET else _UNAVAILABLE_REASON)

    def _is_behind(self, plan: LimitPlan, first: Waiter) -> bool:
        return any(leased is first.short_of for leased in plan.limits)
