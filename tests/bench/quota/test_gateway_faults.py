"""Figures of the faults: by minute, and the ledger compared with what engines reported."""

import json
from pathlib import Path

import pytest

from fairlead_bench.quota.gateway_faults import (
    Answer,
    FaultRun,
    TenantCount,
    ledger_difference,
    per_minute,
    read_ledger_tokens,
    result_rows,
)
from fairlead_bench.results import load_goals


def _run(**changes: object) -> FaultRun:
    answers = [
        Answer("a", 0, 60.5, 61.0, 10),
        Answer("b", 0, 119.9, 120.4, 20),
        Answer("c", 1, 121.0, 122.0, 70),
    ]
    counts = {"counted": TenantCount(answers, cut=[125.0], statuses={200: 3, 429: 4}), "metered": TenantCount()}
    fields = {"killed": {}, "ledger": {"a": 10, "b": 20, "c": 70}, **changes}
    return FaultRun(1, 2, counts, **fields)  # type: ignore[arg-type]


def test_an_answer_counts_in_the_minute_of_its_first_byte() -> None:
    assert per_minute(_run(), "counted") == [(2, 30, 0), (1, 70, 1)]


def test_the_ledger_is_compared_request_by_request() -> None:
    assert ledger_difference(_run(), with_unwritten=True) == 0.0
    missing = _run(ledger={"a": 10, "b": 20})
    assert ledger_difference(missing, with_unwritten=True) == pytest.approx(-0.7)


def test_records_that_a_killed_gateway_could_not_write_are_shown_apart() -> None:
    killed = _run(ledger={"a": 10, "b": 20}, killed={1: 123.0})
    assert ledger_difference(killed, with_unwritten=False) == 0.0
    assert ledger_difference(killed, with_unwritten=True) == pytest.approx(-0.7)


def test_the_ledger_on_the_disk_is_read(tmp_path: Path) -> None:
    lines = [{"id": "a", "inputTokens": 4, "outputTokens": 6}, {"id": "b", "inputTokens": 3}]
    (tmp_path / "usage-2026-11-24-gw.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "replicas-2026-11-24-gw.jsonl").write_text(json.dumps({"at": "x"}) + "\n")
    assert read_ledger_tokens(tmp_path) == {"a": 10, "b": 3}


def test_a_run_has_a_row_for_each_of_its_goals() -> None:
    goals = load_goals("quota")
    found = {row.metric for row in result_rows(_run(), goals)}
    others = ("simulated, ", "over loopback", "processor time of a request", "limits of a request", "lookup", "table")
    assert {metric for metric in goals if not metric.startswith(others)} <= found
