"""Counts of a plain request by its caller: every ratio has a row, and the goals are about them."""

import pytest

from fairlead_bench.gateway_instructions.tenant_requests import (
    LIMITED,
    NAME,
    NO_KEYS,
    STRICT,
    TENANT,
    WITH_KEY,
    callers_by_unit,
    rows,
)
from fairlead_bench.results import load_goals
from fairlead_testing.yaml_documents import load_document

COUNTS = {NO_KEYS: 100.0, WITH_KEY: 110.0, TENANT: 115.0, LIMITED: 120.0, STRICT: 132.0}


def test_ratios_are_those_of_the_means() -> None:
    windows = {unit: [count - 1, count + 1] for unit, count in COUNTS.items()}
    found = {row.metric: row for row in rows(windows)}
    ratios = {name for name in load_goals(NAME) if "÷" in name}
    assert {name for name, row in found.items() if row.goal is not None} == ratios
    assert found[f"instructions per {LIMITED}"].value == 120.0
    assert found[f"instructions of a {LIMITED} ÷ {WITH_KEY}"].ratio == pytest.approx(120 / 110)
    assert found[f"instructions of a {STRICT} ÷ {NO_KEYS}"].ratio == pytest.approx(1.32)


def test_limits_beyond_the_goal_do_not_hold() -> None:
    windows = {unit: [count] for unit, count in {**COUNTS, LIMITED: 127.0}.items()}
    assert not next(row for row in rows(windows) if row.metric == f"instructions of a {LIMITED} ÷ {WITH_KEY}").holds


def test_limits_are_a_document_of_a_tenant_with_four_limits() -> None:
    for unit, enforcement in ((LIMITED, None), (STRICT, "Strict")):
        spec = load_document(callers_by_unit()[unit].file)["spec"]
        assert [sorted(limit) for limit in spec["limits"]] == [["per", "requests", "tokens"], ["per", "tokens"]]
        assert (spec["budget"]["per"], spec.get("enforcement")) == ("Month", enforcement)
