"""The state of a budget in `fairlead tenants show`."""

import pytest

from fairlead.management_api import BudgetOut, KeyUseOut, TenantOut, TenantsOut
from fairlead.units import NANO_USD_PER_USD
from fairlead_cli.tenants.budget_use import KeyUses, describe_budget, merge_key_uses
from fairlead_cli.tenants.command import render_tenant

END = 1_796_083_200.0


def budget(used: float, soft: bool = False) -> BudgetOut:
    return BudgetOut(
        tenant="acme",
        end=END,
        used_nano_usd=int(used * NANO_USD_PER_USD),
        amount_nano_usd=500 * NANO_USD_PER_USD,
        used_share=used / 500,
        soft=soft,
    )


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (None, "–"),
        (budget(410.5), "$410.50 of $500.00 used (82 %), until 2026-12-01 00:00 UTC"),
        (budget(600), "$600.00 of $500.00 used (120 %), until 2026-12-01 00:00 UTC; requests are refused"),
        (budget(500, soft=True), "$500.00 of $500.00 used (100 %), until 2026-12-01 00:00 UTC; requests go on"),
    ],
)
def test_state_names_amount_share_and_end(state: BudgetOut | None, text: str) -> None:
    assert describe_budget(state) == text


def test_tenant_without_a_budget_has_no_such_line() -> None:
    def shown(spec: dict[str, object]) -> str:
        return render_tenant({"metadata": {"name": "acme"}, "spec": spec}, KeyUses(), 0.0, budget(410.5))

    assert "Budget:" not in shown({})
    assert "Budget:        $410.50 of $500.00 used (82 %)" in shown({"budget": {"usd": "500", "per": "Month"}})


NOW = 1_794_997_600.0


def gateway(started_at: float, **uses: float | None) -> TenantsOut:
    return TenantsOut(
        started_at=started_at,
        tenants=[
            TenantOut(name="acme", keys=[KeyUseOut(digest=digest, last_used_at=used) for digest, used in uses.items()])
        ],
    )


def test_the_latest_use_of_any_gateway_counts() -> None:
    uses = merge_key_uses([gateway(NOW - 900, aa=NOW - 600, bb=None), gateway(NOW - 300, aa=NOW - 60, bb=NOW - 120)])
    assert uses.describe("aa11", NOW) == "60s ago"
    assert uses.time_of("bb22") == NOW - 120


def test_an_unused_key_is_unknown_before_the_latest_start() -> None:
    uses = merge_key_uses([gateway(NOW - 900, aa=None), gateway(NOW - 300, aa=None)])
    assert uses.describe("aa11", NOW) == "never seen by these gateways since 2026-11-18T10:21:40Z"


def test_without_any_gateway_nothing_is_known() -> None:
    assert KeyUses().describe("aa11", NOW) == "–"
