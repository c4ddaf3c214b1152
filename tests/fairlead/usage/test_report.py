"""Usage and cost by group, and the same as FOCUS charges."""

import csv
import io
from decimal import Decimal

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.errors import BadInput
from fairlead.usage.ledger_reader import LedgerContent
from fairlead.usage.record import UsageRecord, UsageTable, UsageTotals
from fairlead.usage.replica_log import ReplicaSpan, ReplicaView
from fairlead.usage.report import cost_report, group_usage, parse_dimensions
from fairlead_cli.usage.focus import COLUMNS, cost_rows, format_csv, usage_rows
from fairlead_gateway.usage.engine_time import decode_microseconds, prefill_microseconds

NOON = 20_781 * 86_400 + 43_200
DAY = "2026-11-24"


def totals(tenant: str, key: str = "k", model: str = "x/tiny", **amounts: int) -> UsageTotals:
    return UsageTotals(DAY, tenant, key, model, pool="main", **amounts)


def content() -> LedgerContent:
    usage = [
        totals("acme", "prod", requests=2, input_tokens=7, engine_microseconds=40_000_000, saved_nano_usd=3),
        totals("acme", "ci", requests=1, output_tokens=5, engine_microseconds=10_000_000),
        totals("zeta", requests=1, cost_nano_usd=9),
    ]
    # 100 s at 36 USD an hour: 0.01 USD a second.
    replica = ReplicaSpan("a", NOON, NOON + 100, ReplicaView("x/tiny", "main", "Ready", 36_000_000_000))
    return LedgerContent("id", usage, [replica])


def test_records_are_added_up_by_what_they_have_in_common() -> None:
    table = UsageTable()
    common = {"tenant": "acme", "model": "x/tiny", "key": "k", "pool": "decode"}
    at = f"{DAY}T00:00:00.000Z"
    table.add_record(UsageRecord("1", at, status=200, input_tokens=9, cached_tokens=4, cost_nano_usd=7, saved_nano_usd=1,
                                 engine_microseconds=5, prefill_pool="prefill", prefill_microseconds=8, **common))  # fmt: skip
    table.add_record(UsageRecord("2", at, status=499, output_tokens=2, is_estimated=True, **common))
    decode, prefill = table.rows()
    assert (decode.requests, decode.failed, decode.estimated, decode.unpriced) == (2, 1, 1, 1)
    assert (decode.input_tokens, decode.cached_tokens, decode.output_tokens) == (9, 4, 2)
    assert (decode.cost_nano_usd, decode.saved_nano_usd, decode.engine_microseconds) == (7, 1, 5)
    assert (prefill.pool, prefill.requests, prefill.engine_microseconds) == ("prefill", 0, 8)


def test_usage_is_grouped_by_dimensions() -> None:
    rows = group_usage(content().usage, ("tenant",))
    assert [(row.tenant, row.key, row.requests, row.engine_microseconds) for row in rows] == [
        ("acme", "", 3, 50_000_000),
        ("zeta", "", 1, 0),
    ]


def test_cost_is_grouped_and_what_nobody_used_has_its_own_row() -> None:
    report = cost_report(content(), ("tenant",))
    assert [(row.group, row.state, row.nano_usd, row.saved_nano_usd) for row in report.rows] == [
        (("acme",), "", 500_000_000, 3),
        (("zeta",), "", 0, 0),
        ((None,), "Idle", 500_000_000, 0),
    ]
    assert report.bill_nano_usd == 1_000_000_000
    by_key = cost_report(content(), ("tenant", "key"))
    assert {row.group: row.nano_usd for row in by_key.rows}["acme", "ci"] == 100_000_000
    assert sum(row.nano_usd for row in by_key.rows) == report.bill_nano_usd


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("tenants", "usage cannot be grouped by 'tenants'", "did you mean tenant?"),
        ("tenant,zzz", "usage cannot be grouped by 'zzz'", "use tenant, key, model, adapter, dialect, day"),
        ("", "there is nothing to group by", "use tenant, key, model, adapter, dialect, day"),
    ],
)
def test_unknown_dimension_is_named(text: str, message: str, hint: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_dimensions(text)
    assert (caught.value.message, caught.value.field, caught.value.hint) == (message, "--by", hint)


def test_focus_charges_add_up_to_the_bill() -> None:
    rows = list(csv.DictReader(io.StringIO(format_csv(cost_rows(content())))))
    assert tuple(rows[0]) == COLUMNS
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal("1")
    assert [(row["SubAccountId"], row["x_ApiKey"], row["EffectiveCost"], row["ConsumedQuantity"]) for row in rows] == [
        ("acme", "ci", "0.100000000", "10.000000"),
        ("acme", "prod", "0.400000000", "40.000000"),
        ("", "", "0.500000000", ""),
    ]
    assert rows[2]["ChargeDescription"] == "Replicas of x/tiny: Idle"


def test_focus_charges_of_tokens_have_periods_and_quantities() -> None:
    december = UsageTotals("2026-12-31", "acme", "k", "x/tiny", input_tokens=7, output_tokens=5, cost_nano_usd=12)
    (row,) = usage_rows([december])
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == ("2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z")
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == ("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z")
    assert (row["ConsumedQuantity"], row["BilledCost"], row["ResourceId"]) == ("12", "0.000000012", "x/tiny")


def test_engine_time_counts_computed_tokens_and_shared_steps() -> None:
    profile = builtin_profile("h100-llama8b")
    whole, half = prefill_microseconds(profile, 4_000, 0), prefill_microseconds(profile, 4_000, 2_000)
    assert whole == round(profile.prefill_time(4_000) * 1e6) > half > 0
    alone, shared = (decode_microseconds(profile, 1_000, 101, running) for running in (None, 50.0))
    assert alone == round(100 * profile.step_time(computed=1, sequences=1, resident=1050) * 1e6)
    assert alone > 10 * shared > 0
    assert (prefill_microseconds(profile, 0, 0), decode_microseconds(profile, 10, 1, None)) == (0, 0)
