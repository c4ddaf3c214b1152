"""Warnings about limits, and their state for `/api/limits`."""

from fairlead.fleet.model import Model, TokenPrice
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.tenants.model import Limit, LimitUnit, Tenant, Window
from fairlead_gateway.limits.exchange import LimitReply
from fairlead_gateway.limits.supervisor.quota_service import (
    MemoryLimitStore,
    QuotaService,
    limit_states,
    unpriced_budgets,
)

_BUDGET = Limit(LimitUnit.COST, 1_000, Window.MONTH)


def test_a_budget_without_prices_is_a_warning() -> None:
    free, priced = Model("chat", "free"), Model("chat", "paid", price=TokenPrice(1, 1, 1))
    models = {model.key: model for model in (free, priced)}
    tenants = [Tenant("acme", limits=(_BUDGET,)), Tenant("zeta", models=frozenset({"chat/paid"}), limits=(_BUDGET,))]
    assert unpriced_budgets(tenants, models) == [
        "the budget of tenant acme cannot be enforced: model chat/free has no price"
    ]


def test_many_such_warnings_are_cut_short() -> None:
    tenants = [Tenant(f"t{number}", limits=(_BUDGET,)) for number in range(9)]
    warnings = unpriced_budgets(tenants, {"chat/free": Model("chat", "free")})
    assert len(warnings) == 4
    assert warnings[-1] == "and 6 more budgets"


def test_a_limit_that_was_not_read_is_unknown_and_not_zero() -> None:
    tenant = Tenant("acme", limits=(_BUDGET,))
    assert limit_states(tenant, {}, 0.0)[0].used is None
    past = LimitReply(_BUDGET.id, 0, 5_000, 900, 100, False, [], [], [])
    assert limit_states(tenant, {_BUDGET.id: past}, 6_000.0)[0].used is None
    state = limit_states(tenant, {_BUDGET.id: past}, 4_000.0)[0]
    assert (state.used, state.available, state.resets_at) == (100, 900, 5.0)


async def test_states_are_read_from_the_store_at_each_query() -> None:
    clock = SystemClock()
    service = QuotaService(MemoryLimitStore(clock), "gw", clock=clock, limits=Limits())
    service.set_tenants([Tenant("acme", limits=(_BUDGET,)), Tenant("zeta", limits=(_BUDGET,))])
    service.start()
    states = await service.states(frozenset({"acme"}), 10)
    assert [(state.tenant, state.used, state.available) for state in states] == [("acme", 0, 1_000)]
    await service.stop()
