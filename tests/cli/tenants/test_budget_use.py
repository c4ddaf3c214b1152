"""The state of a budget in `fairlead tenants show`."""

import pytest

from fairlead.units import NANO_USD_PER_USD
from fairlead_cli.management.api_types import BudgetUse
from fairlead_cli.tenants.budget_use import KeyUses, describe_budget
from fairlead_cli.tenants.command import render_tenant

END = 1_796_083_200.0


def budget(used: float, soft: bool = False) -> BudgetUse:
    return BudgetUse("acme", END, int(used * NANO_USD_PER_USD), 500 * NANO_USD_PER_USD, used / 500, soft)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (None, "–"),
        (budget(410.5), "$410.50 of $500.00 used (82 %), until 2026-12-01 00:00 UTC"),
        (budget(600), "$600.00 of $500.00 used (120 %), until 2026-12-01 00:00 UTC; requests are refused"),
        (budget(500, soft=True), "$500.00 of $500.00 used (100 %), until 2026-12-01 00:00 UTC; requests go on"),
    ],
)
def test_state_names_amount_share_and_end(state: BudgetUse | None, text: str) -> None:
    assert describe_budget(state) == text


def test_tenant_without_a_budget_has_no_such_line() -> None:
    def shown(spec: dict[str, object]) -> str:
        return render_tenant({"metadata": {"name": "acme"}, "spec": spec}, KeyUses(), 0.0, budget(410.5))

    assert "Budget:" not in shown({})
    assert "Budget:        $410.50 of $500.00 used (82 %)" in shown({"budget": {"usd": "500", "per": "Month"}})
