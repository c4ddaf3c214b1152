"""The state of limits for people: warnings, and the answers of the management API."""

from collections.abc import Collection, Iterable, Mapping

from fairlead.fleet.model import Model
from fairlead.management_api import LimitOut
from fairlead.tenants.model import LimitUnit, Tenant
from fairlead_gateway.quota.exchange import LimitReply
from fairlead_gateway.quota.ledger import TenantLedger

_MAX_NAMED = 3


def limit_states(tenant: Tenant, replies: Mapping[str, LimitReply], now_ms: float) -> list[LimitOut]:
    """Returns the state of each limit of a tenant, from the store's last replies."""
    states = []
    for limit in tenant.limits:
        reply = replies.get(limit.id)
        if reply is not None and 0 < reply.end <= now_ms:  # of a window that is over
            reply = None
        states.append(
            LimitOut(
                tenant=tenant.name,
                unit=limit.unit.value,
                per=None if limit.window is None else limit.window.value,
                key=limit.key,
                model=limit.model,
                amount=limit.amount,
                soft=limit.is_soft,
                used=None if reply is None else reply.used,
                available=None if reply is None else reply.available,
                resets_at=reply.end / 1000 if reply is not None and reply.end else None,
            )
        )
    return states


def unpriced_budgets(tenants: Iterable[Tenant], models: Mapping[str, Model]) -> list[str]:
    """Returns a warning for budgets that count nothing for a model, since it has no price."""
    unpriced = [key for key, model in models.items() if model.price is None]
    found = []
    for tenant in tenants:
        if not any(limit.unit is LimitUnit.COST for limit in tenant.limits):
            continue
        free = next((key for key in unpriced if tenant.may_use(key)), None)
        if free is not None:
            found.append(f"the budget of tenant {tenant.name} cannot be enforced: model {free} has no price")
    return _first_of(found, "budgets")


def closed_limits(ledgers: Mapping[str, TenantLedger]) -> list[str]:
    """Returns a warning for strict limits that grant nothing after a loss."""
    found = [
        f"the strict limits of tenant {name} are closed until their windows end: Redis has lost what was used"
        for name, ledger in ledgers.items()
        if not ledger.is_open
    ]
    return _first_of(found, "tenants with closed limits")


def _first_of(found: Collection[str], what: str) -> list[str]:
    more = len(found) - _MAX_NAMED
    return [*list(found)[:_MAX_NAMED], *([f"and {more} more {what}"] if more > 0 else [])]
