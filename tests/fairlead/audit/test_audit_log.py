"""The audit log of a process: records with their bounds, streams, files, and counted loss."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from fairlead.audit import AuditLog, AuditOptions, short_digest
from fairlead.audit.log import parse_audit_options
from fairlead.audit.reader import AuditQuery, read_folder
from fairlead.audit.record import MAX_TEXT_CHARS, MAX_VALUES, Action, AuditEvent
from fairlead.errors import SettingsError
from fairlead.runtime.clock import ManualClock
from fairlead_testing.waiting import wait_until


def _event(name: str = "acme", *, tenant: str | None = "acme", reason: str = "") -> AuditEvent:
    return AuditEvent(
        Action.LIMITS_CHANGED, f"ModelTenant/{name}", "kubectl", tenant, {"a": 1}, {"a": 2}, reason, "req_1"
    )


def test_a_record_says_who_when_what_and_why(tmp_path: Path) -> None:
    log = AuditLog("gateway", "gw-1", ManualClock(wall=1_800_000_000.25), AuditOptions(folder=tmp_path))
    log.add(_event(reason="the quarter begins"))
    log.close()
    path = next(tmp_path.iterdir())
    assert json.loads(path.read_text()) == {
        "log": "fairlead.audit",
        "time": "2027-01-15T08:00:00.250000Z",
        "component": "gateway",
        "instance": "gw-1",
        "sequence": 1,
        "action": "LimitsChanged",
        "object": "ModelTenant/acme",
        "actor": "kubectl",
        "tenant": "acme",
        "before": {"a": 1},
        "after": {"a": 2},
        "reason": "the quarter begins",
        "request_id": "req_1",
    }
    assert path.stat().st_mode & 0o007 == 0


def test_texts_and_values_of_a_record_are_bounded() -> None:
    log = AuditLog("gateway", "gw-1", ManualClock())
    values = {f"limit-{number}": "x" * 10_000 for number in range(1_000)}
    log.add(AuditEvent(Action.LIMITS_CHANGED, "o" * 10_000, "a" * 10_000, None, values, values, "r" * 10_000))
    record = log.recent(AuditQuery(), 1)[0]
    assert len(record.object) == len(record.actor) == len(record.reason) == MAX_TEXT_CHARS
    assert len(record.before) == MAX_VALUES + 1
    assert record.before["…"] == 1_000 - MAX_VALUES


def test_memory_keeps_the_newest_and_answers_by_tenant() -> None:
    log = AuditLog("gateway", "gw-1", ManualClock(), AuditOptions(max_recent=3))
    for number in range(5):
        log.add(_event(str(number), tenant="acme" if number % 2 else "beta"))
    assert [record.sequence for record in log.recent(AuditQuery(), 10)] == [5, 4, 3]
    assert [record.sequence for record in log.recent(AuditQuery(tenants=frozenset({"acme"})), 10)] == [4]
    assert [record.sequence for record in log.recent(AuditQuery(), 1)] == [5]


def test_a_stream_gets_one_line_of_json_for_each_record() -> None:
    reading, writing = os.pipe()
    log = AuditLog("operator", "op-1", ManualClock(), AuditOptions(stream=writing))
    log.add(_event())
    log.add(_event())
    log.close()
    os.close(writing)
    with os.fdopen(reading) as lines:
        assert [json.loads(line)["sequence"] for line in lines] == [1, 2]


def test_loss_is_counted_shown_and_recorded_once_the_disk_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "audit"
    folder.write_text("a file where the folder should be")
    log = AuditLog("gateway", "gw-1", ManualClock(), AuditOptions(folder=folder, max_pending=2))
    monkeypatch.setattr("fairlead.audit.log._RETRY_SECONDS", 0.01)
    log.add(_event("first"))
    asyncio.run(wait_until(lambda: bool(log.warnings())))
    for number in range(4):
        log.add(_event(str(number)))
    assert log.lost == 2
    assert log.warnings()[-1] == "2 audit records were lost"
    folder.unlink()
    asyncio.run(wait_until(lambda: len(log.warnings()) == 1))
    log.add(_event("last"))
    log.close()
    records = read_folder(folder, AuditQuery(), max_records=10).records
    assert [record.sequence for record in records] == [1, 4, 5, 6, 7]
    assert (records[-1].action, records[-1].after) == (Action.RECORDS_LOST, {"records": 2})


def test_a_blocked_stream_does_not_block_the_process() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, True)
    log = AuditLog("gateway", "gw-1", ManualClock(), AuditOptions(stream=writing, max_stream_lines=4))
    for _ in range(2_000):
        log.add(_event(reason="x" * MAX_TEXT_CHARS))
    assert log.lost > 0
    os.close(reading)
    log.close(0.05)


@pytest.mark.parametrize(
    ("text", "folder", "expected"),
    [(None, None, AuditOptions()), ("-", None, AuditOptions(1)), ("1", "/audit", AuditOptions(2, Path("/audit")))],
)
def test_settings_name_a_stream_and_a_folder(text: str | None, folder: str | None, expected: AuditOptions) -> None:
    assert parse_audit_options(text, folder) == expected


def test_a_wrong_stream_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_audit_options("/var/log/audit", None)
    assert caught.value.field == "FAIRLEAD_AUDIT_LOG"


def test_digests_in_records_are_short() -> None:
    assert short_digest(bytes.fromhex("ab" * 32)) == "abababab"
