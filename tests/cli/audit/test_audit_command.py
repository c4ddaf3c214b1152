"""`fairlead audit`: records of a folder and of gateways, for people and for programs."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead.audit import Action, AuditEvent, AuditLog, AuditOptions, AuditRecord
from fairlead.errors import BadInput
from fairlead.runtime.clock import ManualClock
from fairlead_cli.audit.command import audit, describe_change, merge_gateways, read_gateways, render_records
from fairlead_cli.exit_codes import StackUnreachable
from fairlead_cli.management.client import ManagementEndpoint
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer

WALL = 1_800_000_000.0


def _limits_changed(tenant: str = "acme", amount: int = 900) -> AuditEvent:
    before, after = {"requests|Minute|*|*": 600}, {"requests|Minute|*|*": amount}
    return AuditEvent(Action.LIMITS_CHANGED, f"ModelTenant/{tenant}", "kubectl-edit", tenant, before, after)


def _log(
    *events: AuditEvent, instance: str = "gw-1", wall: float = WALL, folder: Path | None = None
) -> list[AuditRecord]:
    log = AuditLog("gateway", instance, ManualClock(wall=wall), AuditOptions(folder=folder))
    for event in events:
        log.add(event)
    log.close()
    return list(log._recent)


def _run(folder: Path, output: Any = "table", **selection: Any) -> int:
    return audit(dir=folder, output=output, **{"since": "0", **selection})


def test_a_folder_is_shown_as_a_table_of_one_tenant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _log(_limits_changed(), _limits_changed("beta"), folder=tmp_path)
    assert _run(tmp_path, tenant="acme") == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["TIME", "ACTION", "OBJECT", "ACTOR", "CHANGE"]
    assert line.startswith("2027-01-15 08:00:00Z   LimitsChanged   ModelTenant/acme   kubectl-edit")
    assert line.endswith("requests|Minute|*|* 600 → 900")


def test_json_has_every_record_with_its_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _log(_limits_changed(), folder=tmp_path)
    assert _run(tmp_path, "json") == 0
    [record] = json.loads(capsys.readouterr().out)["records"]
    assert (record["action"], record["sequence"], record["tenant"]) == ("LimitsChanged", 1, "acme")
    assert "log" not in record


def test_torn_lines_are_reported_and_a_folder_without_files_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path) == 1
    assert "FAIRLEAD_AUDIT_DIR" in capsys.readouterr().err
    _log(_limits_changed(), folder=tmp_path)
    with next(tmp_path.iterdir()).open("ab") as file:
        file.write(b'{"log": "fair')
    assert _run(tmp_path) == 0
    assert "1 last lines are incomplete" in capsys.readouterr().err


def test_old_records_are_left_out_and_a_wrong_time_names_its_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _log(_limits_changed(), wall=1_000.0, folder=tmp_path)
    assert _run(tmp_path, since="1h") == 0
    assert capsys.readouterr().out == "no audit records\n"
    with pytest.raises(BadInput) as caught:
        _run(tmp_path, since="yesterday")
    assert caught.value.field == "--since"


def test_a_change_that_several_gateways_saw_is_shown_once_and_a_second_one_again() -> None:
    first, second = _log(_limits_changed()), _log(_limits_changed(), instance="gw-2", wall=WALL + 1.0)
    later = _log(_limits_changed(), wall=WALL + 60.0)
    assert merge_gateways([*first, *second, *later]) == [*first, *later]
    assert render_records([*first, *second], is_wide=True).count("LimitsChanged") == 2


def test_a_change_is_described_by_its_values_and_its_reason() -> None:
    event = AuditEvent(
        Action.SCALED,
        "o",
        "a",
        before={"replicas": 2, "pool": "main"},
        after={"replicas": 3, "pool": "main"},
        reason="load",
    )
    created = AuditEvent(Action.KEY_CREATED, "o", "a", after={"digest": "ab", "expiresAt": None})
    gone = AuditEvent(Action.KEY_REVOKED, "o", "a", before={"digest": "ab"})
    assert [describe_change(record) for record in _log(event, created, gone)] == [
        "replicas 2 → 3; load",
        "digest ab, expiresAt none",
        "digest ab → none",
    ]


def test_gateways_that_do_not_answer_are_named_unless_none_does() -> None:
    body = msgspec.json.encode({"records": [msgspec.to_builtins(record) for record in _log(_limits_changed())]})
    refused = CannedResponse([b'{"error": {"message": "the token x may not do this"}}'], 403)
    with CannedServer({"/api/audit": CannedResponse([body])}) as good, CannedServer({"/api/audit": refused}) as bad:
        endpoints = [
            ManagementEndpoint(name, lambda url=url: url, None) for name, url in (("a", good.url), ("b", bad.url))
        ]  # type: ignore[misc]
        reading = read_gateways(endpoints, 0.0, "acme")
        assert [record.action for record in reading.records] == ["LimitsChanged"]
        assert len(reading.problems) == 1
        assert reading.problems[0].startswith(f"b: {bad.url} refuses access: the token x may not do this")
        with pytest.raises(StackUnreachable):
            read_gateways(endpoints[1:], 0.0, None)
