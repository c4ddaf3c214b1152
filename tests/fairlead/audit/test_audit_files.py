"""Audit files: synced, rotated by size and age, and readable after a crash or a full disk."""

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from fairlead.audit.files import AuditFiles, named_files
from fairlead.audit.reader import AuditQuery, read_folder
from fairlead.audit.record import Action, AuditEvent, encode_record, make_record
from fairlead.errors import BadInput, Unavailable

WALL = 1_800_000_000.0


def _line(sequence: int, *, wall: float = WALL, tenant: str | None = "acme", instance: str = "a") -> bytes:
    event = AuditEvent(Action.KEY_CREATED, f"ApiKey/acme/{sequence}", "kubectl", tenant)
    return encode_record(make_record(event, wall=wall, component="gateway", instance=instance, sequence=sequence))


def _sequences(folder: Path, query: AuditQuery | None = None) -> list[int]:
    return [record.sequence for record in read_folder(folder, query or AuditQuery(), max_records=1_000).records]


def test_lines_are_synced_before_they_count_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    AuditFiles(tmp_path, "gateway-a").append([_line(1), _line(2)], WALL)
    assert synced == [len(_line(1)) + len(_line(2)) + 2]
    assert _sequences(tmp_path) == [1, 2]


def test_a_full_file_and_an_old_file_are_followed_by_the_next(tmp_path: Path) -> None:
    files = AuditFiles(tmp_path, "gateway-a", max_bytes=2 * len(_line(1)) + 2, max_seconds=60.0)
    for sequence in range(1, 6):
        files.append([_line(sequence)], WALL + sequence)
    assert len(named_files(tmp_path)) == 3
    files.append([_line(6)], WALL + 100.0)
    assert len(named_files(tmp_path)) == 4
    assert _sequences(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_only_as_many_files_are_kept_and_none_that_is_too_old(tmp_path: Path) -> None:
    create = partial(AuditFiles, tmp_path, max_bytes=1, max_files=3, keep_seconds=1_000.0, max_seconds=10.0)
    create("operator-b").append([_line(100, instance="b")], WALL)
    files = create("gateway-a")
    for sequence in range(1, 8):
        files.append([_line(sequence)], WALL + sequence)
    assert sorted(_sequences(tmp_path)) == [5, 6, 7, 100]
    files.append([_line(8)], WALL + 1_020.0)
    assert _sequences(tmp_path) == [8]


def test_a_full_disk_leaves_no_half_line_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, write = AuditFiles(tmp_path, "gateway-a"), os.write
    files.append([_line(1)], WALL)

    def fail_after_half(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, bytes(data)[:-10])

    monkeypatch.setattr(os, "write", fail_after_half)
    with pytest.raises(OSError, match="No space left"):
        files.append([_line(2)], WALL)
    monkeypatch.undo()
    files.append([_line(3)], WALL)
    content = read_folder(tmp_path, AuditQuery(), max_records=10)
    assert ([record.sequence for record in content.records], content.torn, content.unreadable) == ([1, 3], 0, 0)


def test_a_torn_last_line_and_foreign_lines_are_counted_and_skipped(tmp_path: Path) -> None:
    AuditFiles(tmp_path, "gateway-a").append([_line(1), b"no record", _line(2)], WALL)
    path = named_files(tmp_path)[0][2]
    with path.open("ab") as file:
        file.write(_line(3)[:40])
    content = read_folder(tmp_path, AuditQuery(), max_records=10)
    assert ([record.sequence for record in content.records], content.torn, content.unreadable) == ([1, 2], 1, 1)


def test_records_are_selected_by_tenant_and_time_and_the_newest_are_kept(tmp_path: Path) -> None:
    files = AuditFiles(tmp_path, "gateway-a")
    rows = [(1, "acme"), (2, "beta"), (3, None), (4, "acme")]
    files.append([_line(number, wall=WALL + number, tenant=tenant) for number, tenant in rows], WALL)
    assert _sequences(tmp_path, AuditQuery(tenants=frozenset({"acme"}))) == [1, 4]
    assert _sequences(tmp_path, AuditQuery(since=WALL + 2.5)) == [3, 4]
    assert [record.sequence for record in read_folder(tmp_path, AuditQuery(), max_records=2).records] == [3, 4]


def test_a_folder_without_audit_files_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("{}\n")
    with pytest.raises(BadInput) as caught:
        read_folder(tmp_path, AuditQuery(), max_records=10)
    assert "FAIRLEAD_AUDIT_DIR" in (caught.value.hint or "")
    with pytest.raises(Unavailable):
        read_folder(tmp_path / "missing", AuditQuery(), max_records=10)
