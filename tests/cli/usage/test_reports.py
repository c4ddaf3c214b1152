"""`fairlead usage` and `fairlead cost`: the same numbers as table, document and CSV."""

import csv
import io
import json
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from fairlead.errors import BadInput
from fairlead.management_api import UsageOut
from fairlead.usage.ledger_files import REPLICAS, USAGE, LedgerFile, ledger_id
from fairlead.usage.record import UsageRecord
from fairlead.usage.replica_log import ReplicaLine, ReplicaView
from fairlead_cli.app import build_app
from fairlead_cli.usage import focus
from fairlead_cli.usage.command import format_rows, to_content

DAY = "2026-11-24"
MIDNIGHT = 20_781 * 86_400
FROM = ("--from", DAY, "--to", DAY)


def fairlead(*words: str) -> int:
    return int(build_app(arguments=words)(words, result_action="return_value") or 0)


def write(folder: Path, kind: str, gateway: str, lines: list[msgspec.Struct]) -> None:
    file = LedgerFile(DAY, kind, gateway, folder)
    with file.lines.open("ab") as out:
        out.writelines(msgspec.json.encode(line) + b"\n" for line in lines)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger of two gateways that saw the same replica for 1,000 s."""
    folder = tmp_path / "ledger"
    ledger_id(folder)
    view = ReplicaView("chat/tiny", "main", "Ready", 3_600_000_000)
    log = [ReplicaLine(MIDNIGHT, True, {"a/1/0": view}), ReplicaLine(MIDNIGHT + 1_000)]
    for gateway, tenant, microseconds in (("gw-1", "acme", 250_000_000), ("gw-2", "zeta", 50_000_000)):
        record = UsageRecord(
            id=f"r-{tenant}", at=f"{DAY}T00:10:00.000Z", tenant=tenant, model="chat/tiny", status=200, key="prod",
            input_tokens=1_000, cached_tokens=600, output_tokens=50, cost_nano_usd=280_000, saved_nano_usd=180_000,
            pool="main", engine_microseconds=microseconds,
        )  # fmt: skip
        write(folder, USAGE, gateway, [record])
        write(folder, REPLICAS, gateway, log)
    return folder


def test_usage_by_tenant_is_a_table_with_a_total(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fairlead("usage", "--dir", str(ledger), *FROM) == 0
    assert capsys.readouterr().out.splitlines() == [
        "TENANT   REQUESTS   FAILED   INPUT   CACHED   OUTPUT   COST        SAVED",
        "acme     1          0        1k      600      50       $0.000280   $0.000180",
        "zeta     1          0        1k      600      50       $0.000280   $0.000180",
        "total    2          0        2k      1.2k     100      $0.000560   $0.000360",
    ]


def test_cost_adds_up_to_the_bill(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fairlead("cost", "--dir", str(ledger), *FROM) == 0
    assert capsys.readouterr().out.splitlines() == [
        "TENANT   STATE   COST    SHARE   ENGINE   SAVED",
        "acme     used    $0.25   25 %    4m10s    $0.000180",
        "zeta     used    $0.05   5 %     50s      $0.000180",
        "–        idle    $0.70   70 %",
        "total            $1.00   100 %",
    ]
    fairlead("cost", "--dir", str(ledger), *FROM, "-o", "json", "--by", "tenant,key")
    document = json.loads(capsys.readouterr().out)
    assert document["billNanoUsd"] == 1_000_000_000
    assert sum(Decimal(row["costUsd"]) for row in document["cost"]) == Decimal(1)


def test_csv_has_the_same_rows(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fairlead("usage", "--dir", str(ledger), *FROM, "--csv", "--by", "tenant,model")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["tenant"], row["model"], row["costUsd"]) for row in rows] == [
        ("acme", "chat/tiny", "0.00028"),
        ("zeta", "chat/tiny", "0.00028"),
    ]
    for verb, total in (("usage", "0.00056"), ("cost", "1")):
        fairlead(verb, "--dir", str(ledger), *FROM, "--focus")
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(total)


def test_copy_of_a_ledger_counts_once(ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in ledger.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    fairlead("usage", "--dir", str(ledger), "--dir", str(copy), *FROM, "-o", "json")
    assert sum(row["requests"] for row in json.loads(capsys.readouterr().out)["usage"]) == 2


def test_other_days_hold_nothing(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fairlead("usage", "--dir", str(ledger), "--from", "2026-11-20", "--to", "2026-11-23") == 0
    assert fairlead("cost", "--dir", str(ledger), "--to", "2026-11-23", "--last", "3d") == 0
    assert capsys.readouterr().out == "no use in this time\n" * 2


def test_what_is_missing_is_a_note(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unpriced = ReplicaView("chat/tiny", "other", "Ready")
    write(ledger, REPLICAS, "gw-3", [ReplicaLine(MIDNIGHT, True, {"b": unpriced}), ReplicaLine(MIDNIGHT + 5_400)])
    write(ledger, USAGE, "gw-3", [])
    with LedgerFile(DAY, USAGE, "gw-3", ledger).lines.open("ab") as out:
        out.write(b'{"id": "torn\n')
    fairlead("cost", "--dir", str(ledger), *FROM)
    assert capsys.readouterr().err.splitlines() == [
        "note: 1.5 replica-hours have no price and are not in the report: set costPerHour of the AcceleratorClass",
        "note: 1 lines of the ledger could not be read, as after a crash",
    ]


@pytest.mark.parametrize(
    ("words", "field", "message"),
    [
        (("--last", "week"), "--last", "'week' is not a number of days"),
        (("--last", "7d", "--from", DAY), "--last", "--from and --last exclude each other"),
        (("--from", "24.11.2026"), "--from", "'24.11.2026' is not a day"),
        (("--from", "2026-11-25", "--to", DAY), "--from", "2026-11-25 is after 2026-11-24"),
        (("--from", "2020-01-01", "--to", DAY), "--from", "a report spans at most 400 days"),
        (("--by", "tennant"), "--by", "usage cannot be grouped by 'tennant'"),
        (("--dir", "/nowhere"), "--dir", "cannot read the folder /nowhere: No such file or directory"),
    ],
)
def test_wrong_option_is_named(words: tuple[str, ...], field: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        fairlead("usage", "--dir", "/nowhere", *words)
    assert (caught.value.field, caught.value.message) == (field, message)


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1-2", "'+1-2"),
        ("@sum", "'@sum"),
        (" =1", "' =1"),
        ("\t=1", "\N{REPLACEMENT CHARACTER}=1"),
        ("-1.5", "-1.5"),
        ("a=b", "a=b"),
        ("\x1b[31mred", "\N{REPLACEMENT CHARACTER}[31mred"),
        ("", ""),
    ],
)
def test_cells_of_csv_are_no_formulas_and_control_no_terminal(name: str, cell: str) -> None:
    for text in (format_rows([{"model": name, "cost": 1}]), focus.format_csv([{"ResourceName": name}])):
        (row,) = csv.DictReader(io.StringIO(text))
        assert (row.get("model") or row.get("ResourceName") or "") == cell


def test_answer_of_a_gateway_is_read_by_the_names_that_it_has() -> None:
    answer = {"ledger": "l", "usage": [{"tenant": "acme", "requests": 3, "output_tokens": 12, "cost_nano_usd": 7}]}
    (row,) = to_content(msgspec.convert(answer, UsageOut)).usage
    assert (row.tenant, row.requests, row.output_tokens, row.cost_nano_usd) == ("acme", 3, 12, 7)
