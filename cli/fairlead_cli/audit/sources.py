"""The sources of audit records: the gateways of a stack or a cluster, or a folder of files."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairlead.audit.reader import AuditQuery, read_folder
from fairlead.audit.record import AuditRecord
from fairlead.errors import BadInput, first_line
from fairlead_cli.errors import StackUnreachable
from fairlead_cli.management.client import ManagementClient
from fairlead_cli.management.endpoints import ManagementEndpoint

AUDIT_ANSWER: Final = 1_000
"""Limit: audit records in one answer of `/api/audit`."""
AUDIT_READ: Final = 100_000
"""Limit: audit records that `fairlead audit` shows of a folder, the newest ones."""


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
            found = asyncio.run(_read(endpoint, since, tenant))
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


async def _read(endpoint: ManagementEndpoint, since: float, tenant: str | None) -> Sequence[AuditRecord]:
    async with ManagementClient(endpoint.url(), endpoint.token) as client:
        return await client.audit(since, tenant, AUDIT_ANSWER)
