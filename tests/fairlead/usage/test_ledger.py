"""The files of a ledger: what crashes leave, checkpoints, and several gateways."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from fairlead.errors import BadInput
from fairlead.usage.checkpoints import Retention, maintain, read_content, write_checkpoint
from fairlead.usage.ledger_files import USAGE, LedgerFile, file_gateway_name, ledger_id, list_files
from fairlead.usage.ledger_reader import LedgerContent, merge_ledgers, read_ledger
from fairlead.usage.record import UsageRecord
from fairlead.usage.replica_log import ReplicaLine, ReplicaView

KEEP_ALL = Retention(lines_days=30, lines_bytes=10**9)


def record(id: str, day: str = "2026-11-24", **fields: object) -> UsageRecord:
    values = {"tenant": "acme", "model": "x/tiny", "status": 200, "input_tokens": 10, "cost_nano_usd": 5, **fields}
    return UsageRecord(id, f"{day}T12:00:00.000Z", **values)  # type: ignore[arg-type]


def append(folder: Path, records: Sequence[UsageRecord], gateway: str = "gw-1", day: str = "2026-11-24") -> LedgerFile:
    file = LedgerFile(day, USAGE, gateway, folder)
    with file.lines.open("ab") as out:
        out.writelines(msgspec.json.encode(entry) + b"\n" for entry in records)
    return file


def requests(folder: Path, first: str = "2026-11-01", last: str = "2026-11-30") -> int:
    return sum(row.requests for row in read_ledger(folder, first, last).usage)


def test_incomplete_last_line_of_a_crash_is_skipped(tmp_path: Path) -> None:
    file = append(tmp_path, [record("a"), record("b")])
    whole = file.lines.read_bytes()
    for cut in range(1, len(whole)):
        file.lines.write_bytes(whole[:-cut])
        assert requests(tmp_path) == whole[:-cut].count(b"\n")
    file.lines.write_bytes(whole[:-9] + b"\n" + msgspec.json.encode(record("c")) + b"\n")
    content = read_content(file)
    assert ([row.requests for row in content.usage.rows()], content.broken) == ([2], 1)


def test_record_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    file = append(tmp_path, [record("a"), record("b"), record("a"), record("b"), record("c")])
    assert (requests(tmp_path), read_content(file).repeated) == (3, 2)


def test_checkpoint_and_the_lines_behind_it_are_the_whole(tmp_path: Path) -> None:
    file = append(tmp_path, [record("a"), record("b", tenant="zeta")])
    write_checkpoint(file)
    append(tmp_path, [record("c")])
    assert [(row.tenant, row.requests) for row in read_ledger(tmp_path, "2026-11-24", "2026-11-24").usage] == [
        ("acme", 2),
        ("zeta", 1),
    ]


def test_totals_are_not_readable_for_everyone(tmp_path: Path) -> None:
    file = append(tmp_path, [record("a")])
    write_checkpoint(file)
    assert file.checkpoint.stat().st_mode & 0o777 == 0o640


def test_lines_of_old_days_are_removed_and_their_totals_stay(tmp_path: Path) -> None:
    days = ["2026-10-01", "2026-11-23", "2026-11-24"]
    for day in days:
        append(tmp_path, [record(f"{day}-{at}", day) for at in range(3)], day=day)
    before = read_ledger(tmp_path, days[0], days[-1])
    removed = maintain(tmp_path, "2026-11-24", "2026-10-25", KEEP_ALL)
    assert [file.day for file in removed] == ["2026-10-01"]
    assert [(file.day, file.lines.exists(), file.checkpoint.exists()) for file in list_files(tmp_path)] == [
        ("2026-10-01", False, True),
        ("2026-11-23", True, True),
        ("2026-11-24", True, False),
    ]
    assert read_ledger(tmp_path, days[0], days[-1]) == before
    assert maintain(tmp_path, "2026-11-24", "2026-10-25", KEEP_ALL) == []


def test_oldest_lines_are_removed_early_if_there_are_too_many(tmp_path: Path) -> None:
    for day in ("2026-11-20", "2026-11-21", "2026-11-22"):
        append(tmp_path, [record(f"{day}-{at}", day) for at in range(10)], day=day)
    each = list_files(tmp_path)[0].lines.stat().st_size
    removed = maintain(tmp_path, "2026-11-24", "2026-01-01", Retention(30, 2 * each))
    assert [file.day for file in removed] == ["2026-11-20"]
    assert requests(tmp_path) == 30


def test_late_record_of_a_day_with_a_checkpoint_counts(tmp_path: Path) -> None:
    append(tmp_path, [record("a", "2026-11-20")], day="2026-11-20")
    maintain(tmp_path, "2026-11-24", "2026-11-01", KEEP_ALL)
    append(tmp_path, [record("b", "2026-11-20")], day="2026-11-20")
    assert requests(tmp_path) == 2
    maintain(tmp_path, "2026-11-24", "2026-11-24", KEEP_ALL)
    assert (requests(tmp_path), list_files(tmp_path)[0].lines.exists()) == (2, False)


def test_broken_checkpoint_is_made_again_from_the_lines(tmp_path: Path) -> None:
    file = append(tmp_path, [record("a"), record("b")])
    file.checkpoint.write_bytes(b'{"offset": 12')
    assert requests(tmp_path) == 2


def test_replica_spans_survive_the_removal_of_their_lines(tmp_path: Path) -> None:
    view = ReplicaView("x/tiny", "main", "Ready", 7)
    file = LedgerFile("1970-01-01", "replicas", "gw", tmp_path)
    lines = [ReplicaLine(100, True, {"a": view}), ReplicaLine(160)]
    file.lines.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    before = read_ledger(tmp_path, "1970-01-01", "1970-01-01")
    maintain(tmp_path, "2026-11-24", "2026-11-01", KEEP_ALL)
    assert read_ledger(tmp_path, "1970-01-01", "1970-01-01") == before
    assert [(span.start, span.end) for span in before.replicas] == [(100, 160)]


def test_a_ledger_that_gateways_share_counts_once(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    for folder in (shared, own):
        assert ledger_id(folder) == ledger_id(folder)
    append(shared, [record("a")], "gw-1")
    early = read_ledger(shared, "2026-11-24", "2026-11-24")
    append(shared, [record("b")], "gw-2")
    append(own, [record("c")], "gw-3")
    late, other = (read_ledger(folder, "2026-11-24", "2026-11-24") for folder in (shared, own))
    merged = merge_ledgers([early, late, other, late])
    assert sum(row.requests for row in merged.usage) == 3


def test_losses_of_all_gateways_are_added_up() -> None:
    merged = merge_ledgers([LedgerContent("a", [], [], 1, 2), LedgerContent("a", [], [], 1, 5)])
    assert (merged.broken, merged.lost) == (1, 7)


def test_missing_folder_is_named() -> None:
    with pytest.raises(BadInput, match="cannot read the folder /nowhere/usage") as caught:
        list_files(Path("/nowhere/usage"))
    assert caught.value.field == "--dir"


def test_gateway_id_is_a_file_name() -> None:
    assert file_gateway_name("pod/../a b") == "pod_.._a_b"
    assert LedgerFile("2026-11-24", USAGE, file_gateway_name("a/b"), Path("/x")).lines.parent == Path("/x")
