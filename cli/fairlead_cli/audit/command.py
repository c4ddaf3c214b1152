"""``fairlead audit``: shows who changed or read what."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from fairlead.audit.reader import AuditQuery, read_folder
from fairlead.audit.record import AuditRecord, Value, to_builtins
from fairlead.errors import BadInput, first_line, plain_text
from fairlead.runtime.clock import SystemClock
from fairlead_cli.exit_codes import StackUnreachable, run_query
from fairlead_cli.formatting import align_columns, printable
from fairlead_cli.management.client import GatewaysSource, ManagementEndpoint, open_endpoints
from fairlead_cli.moments import parse_moment
from fairlead_cli.output import OutputFlag, format_document, is_document

_GATEWAYS = GatewaysSource()

AUDIT_ANSWER: Final = 1_000
"""Limit: audit records in one answer of `/api/audit`."""
AUDIT_READ: Final = 100_000
"""Limit: audit records that `fairlead audit` shows of a folder, the newest ones."""

_SAME_SECONDS = 30.0
"""Gateways see the same change within this time."""


def audit(
    *,
    since: Annotated[
        str, Parameter(help="The oldest record: 1h (ago), 14:05, or 2026-11-21T14:05. Default: a day ago.")
    ] = "24h",
    tenant: Annotated[str | None, Parameter(help="Only records about this tenant.")] = None,
    dir: Annotated[Path | None, Parameter(help="A folder of audit files, instead of the gateways.")] = None,
    source: Annotated[GatewaysSource, Parameter(name="*")] = _GATEWAYS,
    output: OutputFlag = "table",
) -> int:
    """Show who changed or read what, when, and why.

    Reads the last records of all gateways, or with --dir the files of FAIRLEAD_AUDIT_DIR. A change
    that several gateways recorded is shown once. JSON and YAML have every record.

    Exits 0 when done, 1 when the folder has no audit file, 2 on wrong usage, 3 when no gateway can
    be reached.
    """
    oldest = max(0.0, parse_moment(since, SystemClock().wall(), "--since"))
    if dir is not None and source.manage is not None:
        raise BadInput("--dir and --manage exclude each other", field="--dir", hint="give one of them")

    def fetch() -> FoundRecords:
        if dir is not None:
            return read_files(dir, oldest, tenant)
        with open_endpoints(source.manage, source.installation.cluster) as endpoints:
            return read_gateways(endpoints, oldest, tenant)

    def render(found: FoundRecords) -> str:
        for problem in found.problems:
            print(plain_text(f"fairlead: {problem}"), file=sys.stderr)
        if is_document(output):
            return format_document({"records": [to_builtins(record) for record in found.records]}, output)
        return render_records(found.records, is_wide=output == "wide")

    return run_query(fetch, render)


@dataclass(frozen=True, slots=True)
class FoundRecords:
    """Audit records, the oldest first, and what could not be read, as text."""

    records: Sequence[AuditRecord]
    problems: Sequence[str] = ()


def read_files(folder: Path, since: float, tenant: str | None) -> FoundRecords:
    """Returns the records of a folder.

    Raises Unavailable if it cannot be listed, and LookupError if it has no audit file.
    """
    query = AuditQuery(since, None if tenant is None else frozenset({tenant}))
    limit = AUDIT_READ
    try:
        content = read_folder(folder, query, max_records=limit)
    except BadInput as error:
        raise LookupError(f"{error.message}; {error.hint}") from error
    problems = []
    if content.torn:
        problems.append(f"{content.torn} last lines are incomplete: a process was killed while it wrote")
    if content.unreadable:
        problems.append(f"{content.unreadable} lines or files cannot be read")
    if len(content.records) == limit:
        problems.append(f"there may be older records: these are the newest {limit:,}")
    return FoundRecords(content.records, problems)


def read_gateways(endpoints: Sequence[ManagementEndpoint], since: float, tenant: str | None) -> FoundRecords:
    """Returns the records in the memory of all gateways that answer.

    Raises StackUnreachable if none does.
    """
    records: list[AuditRecord] = []
    problems: list[str] = []
    failures: list[StackUnreachable] = []
    for endpoint in endpoints:
        try:
            found = endpoint.query(lambda client: client.audit(since, tenant, AUDIT_ANSWER))
        except StackUnreachable as error:
            failures.append(error)
            problems.append(f"{endpoint.name}: {first_line(error, 200)}")
            continue
        records += found
        if len(found) == AUDIT_ANSWER:
            problems.append(f"{endpoint.name} may have older records: these are its newest {len(found):,}")
    if failures and len(failures) == len(endpoints):
        raise failures[0]
    records.sort(key=lambda record: (record.wall, record.instance, record.sequence))
    return FoundRecords(records, problems)


def render_records(records: Sequence[AuditRecord], *, is_wide: bool) -> str:
    """Returns a table. ``is_wide``: with the processes, and every record."""
    if not records:
        return "no audit records"
    shown = records if is_wide else merge_gateways(records)
    rows = [("TIME", "ACTION", "OBJECT", "ACTOR", "CHANGE", *(("PROCESS",) if is_wide else ()))]
    for record in shown:
        process = f"{record.component} {record.instance} #{record.sequence}"
        time = datetime.fromtimestamp(record.wall, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        row = (time, record.action, record.object, record.actor, describe_change(record))
        rows.append(tuple(map(printable, (*row, process) if is_wide else row)))
    return align_columns(rows)


def describe_change(record: AuditRecord) -> str:
    """Returns what changed and why: ``tier Standard → Batch; reason``."""
    parts = []
    for name in {**record.before, **record.after}:
        before, after = record.before.get(name), record.after.get(name)
        if name not in record.before:
            parts.append(f"{name} {_show(after)}")
        elif name not in record.after:
            parts.append(f"{name} {_show(before)} → none")
        elif before != after:
            parts.append(f"{name} {_show(before)} → {_show(after)}")
    return "; ".join(text for text in (", ".join(parts), record.reason) if text)


def merge_gateways(records: Sequence[AuditRecord]) -> list[AuditRecord]:
    """Returns the records without those of further gateways about the same change."""
    merged: list[AuditRecord] = []
    last: dict[tuple[object, ...], AuditRecord] = {}
    for record in records:
        values = (tuple(record.before.items()), tuple(record.after.items()), record.reason)
        key = (record.component, record.action, record.object, record.actor, *values)
        known = last.get(key)
        if known is not None and known.instance != record.instance and record.wall - known.wall <= _SAME_SECONDS:
            continue
        last[key] = record
        merged.append(record)
    return merged


def _show(value: Value) -> str:
    return "none" if value is None else str(value)
