"""The last use of keys over several gateways."""

from fairlead_cli.management.api_types import KeyUse, TenantList, TenantUse
from fairlead_cli.tenants.budget_use import KeyUses, merge_key_uses

NOW = 1_794_997_600.0


def gateway(started_at: float, **uses: float | None) -> TenantList:
    return TenantList(started_at, [TenantUse("acme", [KeyUse(digest, used) for digest, used in uses.items()])])


def test_the_latest_use_of_any_gateway_counts() -> None:
    uses = merge_key_uses([gateway(NOW - 900, aa=NOW - 600, bb=None), gateway(NOW - 300, aa=NOW - 60, bb=NOW - 120)])
    assert uses.describe("aa11", NOW) == "60s ago"
    assert uses.time_of("bb22") == NOW - 120


def test_an_unused_key_is_unknown_before_the_latest_start() -> None:
    uses = merge_key_uses([gateway(NOW - 900, aa=None), gateway(NOW - 300, aa=None)])
    assert uses.describe("aa11", NOW) == "never seen by these gateways since 2026-11-18T10:21:40Z"


def test_without_any_gateway_nothing_is_known() -> None:
    assert KeyUses().describe("aa11", NOW) == "–"
