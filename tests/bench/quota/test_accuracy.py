"""Benchmarks of limits: accuracy, faults of gateways, the cost of a request."""

import json
from pathlib import Path

import pytest

from fairlead.tenants.model import Enforcement
from fairlead_bench.quota.accuracy import (
    AdmittedRequests,
    TenantLimits,
    TrafficCase,
    accuracy,
    tenant_requests,
)
from fairlead_bench.quota.gateway_faults import (
    Answer,
    FaultRun,
    TenantCount,
    ledger_difference,
    per_minute,
    read_ledger_tokens,
    result_rows,
)
from fairlead_bench.quota.request_cost import LimitedRequests, RequestCost, cost_rows
from fairlead_bench.results import load_goals

_REQUESTS = TrafficCase("requests", TenantLimits(requests=60), 120)
_TOKENS = TrafficCase("tokens", TenantLimits(tokens=30_000), 150, max_tokens=1_000)


def test_overrun_and_underuse_of_windows_do_not_cancel_out() -> None:
    times = [(60.0 * minute + second, 0.5) for minute, count in ((0, 4), (1, 15), (2, 5)) for second in range(count)]
    requests = AdmittedRequests([(at, at + seconds, 10) for at, seconds in times], starts=(0.0, 60.0, 120.0))
    shares = accuracy(requests, TenantLimits(requests=10), windows=2)
    assert (shares.overrun, shares.underuse, shares.total) == pytest.approx((0.25, 0.25, 1.0))


def test_time_without_a_window_is_not_used() -> None:
    admitted = [(at, at + 1.0, 10) for at in (0.0, 60.0, 61.0, 150.0, 151.0)]
    requests = AdmittedRequests(admitted, starts=(0.0, 60.0, 150.0))
    assert accuracy(requests, TenantLimits(requests=2), windows=3).underuse == pytest.approx(1 / 3)


def test_the_better_attribution_counts() -> None:
    requests = AdmittedRequests([(59.0, 61.0, 10), (119.0, 121.0, 10)], starts=(0.0, 60.0, 120.0))
    assert accuracy(requests, TenantLimits(tokens=10), windows=1).underuse == 0.0


def test_the_traffic_of_a_case_is_the_same_for_every_product() -> None:
    assert tenant_requests(_TOKENS, 60.0, 3, 7) == tenant_requests(_TOKENS, 60.0, 3, 7)
    assert tenant_requests(_TOKENS, 60.0, 3, 7) != tenant_requests(_TOKENS, 60.0, 3, 8)


def test_a_budget_has_one_window() -> None:
    requests = AdmittedRequests([(0.0, 61.0, 10)], nano_usd=150, starts=(0.0, 60.0))
    shares = accuracy(requests, TenantLimits(budget=200), windows=8)
    assert (shares.overrun, shares.underuse, shares.total) == (0.0, 0.25, 0.75)


def _run_with_faults(**changes: object) -> FaultRun:
    answers = [
        Answer("a", 0, 60.5, 61.0, 10),
        Answer("b", 0, 119.9, 120.4, 20),
        Answer("c", 1, 121.0, 122.0, 70),
    ]
    counts = {"counted": TenantCount(answers, cut=[125.0], statuses={200: 3, 429: 4}), "metered": TenantCount()}
    fields = {"killed": {}, "ledger": {"a": 10, "b": 20, "c": 70}, **changes}
    return FaultRun(1, 2, counts, **fields)  # type: ignore[arg-type]


def test_an_answer_counts_in_the_minute_of_its_first_byte() -> None:
    assert per_minute(_run_with_faults(), "counted") == [(2, 30, 0), (1, 70, 1)]


def test_the_ledger_is_compared_request_by_request() -> None:
    assert ledger_difference(_run_with_faults(), with_unwritten=True) == 0.0
    missing = _run_with_faults(ledger={"a": 10, "b": 20})
    assert ledger_difference(missing, with_unwritten=True) == pytest.approx(-0.7)


def test_records_that_a_killed_gateway_could_not_write_are_shown_apart() -> None:
    killed = _run_with_faults(ledger={"a": 10, "b": 20}, killed={1: 123.0})
    assert ledger_difference(killed, with_unwritten=False) == 0.0
    assert ledger_difference(killed, with_unwritten=True) == pytest.approx(-0.7)


def test_the_ledger_on_the_disk_is_read(tmp_path: Path) -> None:
    lines = [{"id": "a", "inputTokens": 4, "outputTokens": 6}, {"id": "b", "inputTokens": 3}]
    (tmp_path / "usage-2026-11-24-gw.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "replicas-2026-11-24-gw.jsonl").write_text(json.dumps({"at": "x"}) + "\n")
    assert read_ledger_tokens(tmp_path) == {"a": 10, "b": 3}


def test_a_run_has_a_row_for_each_of_its_goals() -> None:
    goals = load_goals("quota")
    metrics = {row.metric for row in result_rows(_run_with_faults(), goals)}
    assert {metric for metric in goals if not metric.startswith("simulated, ")} <= metrics


def test_measured_requests_use_every_limit_of_their_tenant() -> None:
    for enforcement in Enforcement:
        measured = LimitedRequests(enforcement, 1)
        contexts = measured.contexts(20)
        assert measured.pass_seconds(contexts) > 0.0
        (limits,) = measured.gate.tenants.values()
        used = {name: leased.current.spent for name, leased in limits.leased.items()}
        assert used == {
            "requests|Minute|*|*": 20,
            "tokens|Minute|*|*": 20 * (512 + 128),
            "tokens|Day|*|*": 20 * (512 + 128),
            "cost|Month|*|*": 20 * (256 * 400 + 256 * 100 + 128 * 1_200),
        }
        assert all(leased.current.busy == 0 for leased in limits.leased.values())
        assert len({context.id for context in contexts}) == 20
        measured.close()


def test_a_request_beyond_its_goal_does_not_hold() -> None:
    cost = RequestCost(5.5, 1.0, 0.2, 3.0, 1.5, 13.0, True)
    by_metric = {row.metric: row for row in cost_rows(cost)}
    with_goals = {name for name, row in by_metric.items() if row.goal is not None}
    assert with_goals <= set(load_goals("tenant-instructions"))
    assert not by_metric["limits of a request"].holds
    assert by_metric["lookup of a caller, 10,000 tenants × 5 keys"].holds
