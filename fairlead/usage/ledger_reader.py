"""Reads ledgers, and merges those of several gateways without counting anything twice."""

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import msgspec

from fairlead.errors import BadInput
from fairlead.usage.checkpoints import read_content
from fairlead.usage.ledger_files import USAGE, known_ledger_id, list_files
from fairlead.usage.record import UsageTable, UsageTotals
from fairlead.usage.replica_log import ReplicaSpan

USAGE_QUERY_DAYS: Final = 400
"""Limit: days that one report may span."""


class LedgerContent(msgspec.Struct, rename="camel"):
    """The content of a ledger about some days.

    - ledger: id of the folder; equal for gateways that share one.
    - broken: lines that could not be read.
    - lost: records that the gateways could not write, since they started.
    """

    ledger: str
    usage: list[UsageTotals]
    replicas: list[ReplicaSpan]
    broken: int = 0
    lost: int = 0


def read_ledger(folder: Path, first_day: str, last_day: str) -> LedgerContent:
    """Returns what a folder holds about these days, both included. Raises BadInput, OSError."""
    table = UsageTable()
    spans: list[ReplicaSpan] = []
    broken = 0
    for file in list_files(folder):
        if not first_day <= file.day <= last_day:
            continue
        content = read_content(file)
        broken += content.broken
        if file.kind == USAGE:
            table.add_table(content.usage)
        else:
            spans += content.spans
    return LedgerContent(known_ledger_id(folder), table.rows(), spans, broken)


def merge_ledgers(contents: Iterable[LedgerContent]) -> LedgerContent:
    """Returns the content of several ledgers, in which a shared one counts once.

    Of several readings of one ledger, the one with the most requests counts: it is the newest.
    """
    newest: dict[str, LedgerContent] = {}
    lost = 0
    for content in contents:
        lost += content.lost
        known = newest.get(content.ledger)
        if known is None or _requests(content.usage) > _requests(known.usage):
            newest[content.ledger] = content
    table = UsageTable()
    spans: list[ReplicaSpan] = []
    for content in newest.values():
        for row in content.usage:
            table.add_totals(row)
        spans += content.replicas
    broken = sum(content.broken for content in newest.values())
    return LedgerContent(",".join(sorted(newest)), table.rows(), spans, broken, lost)


def _requests(rows: Sequence[UsageTotals]) -> int:
    return sum(row.requests for row in rows)


def parse_day(text: str, field: str) -> date:
    """Returns a day of the form `2026-11-24`. Raises BadInput naming `field`."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise BadInput(f"{text!r} is not a day", field=field, hint="write it like 2026-11-24") from error


def days_until(today: date, days: int) -> tuple[date, date]:
    span = min(days - 1, (today - date.min).days)
    return today - timedelta(days=span), today
