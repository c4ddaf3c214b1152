"""Errors about limits, for clients."""

import math
from typing import Final

from fairlead.tenants.model import Limit, LimitUnit, Tenant
from fairlead.units import format_exact_usd, format_usd
from fairlead_gateway.errors import BudgetSpent, ConcurrencyReached, GatewayError, LimitReached, LimitsUnavailable
from fairlead_gateway.quota.exchange import CLOSED
from fairlead_gateway.worker.quota.limit_plan import PlannedLimit

_UNIT_NAMES: Final = {
    LimitUnit.REQUESTS: "requests",
    LimitUnit.INPUT_TOKENS: "input tokens",
    LimitUnit.OUTPUT_TOKENS: "output tokens",
    LimitUnit.TOKENS: "tokens",
    LimitUnit.CONCURRENCY: "requests at the same time",
    LimitUnit.BYTES_IN_FLIGHT: "bytes in flight",
}
_RETURNED_RETRY_SECONDS: Final = 1
_FOLLOWED_SECONDS: Final = 60
"""Longest wait that all SDKs follow. Of longer ones, some send again at once and others sleep for
days.

Source: openai-python 3555, earendil-works/pi 6912.
"""


def describe_limit(limit: Limit, tenant: str) -> str:
    """Returns a limit as text: `600 requests per minute of tenant acme, key ci`."""
    text = (
        f"{format_exact_usd(limit.amount)} US dollars"
        if limit.unit is LimitUnit.COST
        else f"{limit.amount} {_UNIT_NAMES[limit.unit]}"
    )
    if limit.window is not None:
        text += f" per {limit.window.value.lower()}"
    text += f" of tenant {tenant}"
    if limit.key is not None:
        text += f", key {limit.key}"
    if limit.model is not None:
        text += f", model {limit.model}"
    return text


def limit_reached(planned: PlannedLimit, amount: int, tenant: Tenant, now: float) -> GatewayError:
    """Returns the error for a request that needs `amount` of a limit that has less left."""
    limit, leased = planned.limit, planned.leased
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


def limit_contended(planned: PlannedLimit, tenant: Tenant) -> GatewayError:
    """Returns the error for a request that has waited too long behind others for what is left of a
    limit.
    """
    return LimitReached(
        f"too many requests wait for what is left of the limit of {describe_limit(planned.limit, tenant.name)}",
        hint="send fewer requests at the same time",
        headers=(("retry-after", str(_RETURNED_RETRY_SECONDS)),),
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
    return (
        (retry_after,) if is_possible and seconds <= _FOLLOWED_SECONDS else (retry_after, ("x-should-retry", "false"))
    )
