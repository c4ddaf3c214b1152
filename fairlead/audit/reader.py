"""Reads audit records from a folder, and selects those that are asked for."""

from dataclasses import dataclass
from pathlib import Path

from fairlead.audit.files import named_files
from fairlead.audit.record import AuditRecord, decode_record
from fairlead.errors import BadInput, Unavailable


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """A selection of records.

    since: Unix seconds of the oldest one.
    tenants: only of these tenants; None: of all, and those of the cluster.
    """

    since: float = 0.0
    tenants: frozenset[str] | None = None

    def matches(self, record: AuditRecord) -> bool:
        """Returns whether the record is asked for."""
        if self.tenants is not None and record.tenant not in self.tenants:
            return False
        return record.wall >= self.since


@dataclass(frozen=True, slots=True)
class FolderContent:
    """The records of a folder in the order of their times, and how many lines are none.

    torn: last lines of files that a process did not finish.
    unreadable: other lines that are no records, and files that cannot be read.
    """

    records: list[AuditRecord]
    torn: int
    unreadable: int


def read_folder(folder: Path, query: AuditQuery, *, max_records: int) -> FolderContent:
    """Returns the newest records of a folder that are asked for, the oldest first.

    Raises Unavailable if the folder cannot be listed, and BadInput if it has no audit file.
    """
    try:
        files = named_files(folder)
    except OSError as error:
        raise Unavailable(f"cannot read {folder}: {error.strerror or error}") from error
    if not files:
        hint = "name the folder of FAIRLEAD_AUDIT_DIR; its files are called audit-*.jsonl"
        raise BadInput(f"{folder} has no audit files", field="--dir", hint=hint)
    found: list[AuditRecord] = []
    torn = unreadable = 0
    for number, (_, _, path) in enumerate(files):
        if number + 1 < len(files) and _ended_before(path, query.since):
            continue
        content = _read_file(path, query)
        found += content.records
        torn, unreadable = torn + content.torn, unreadable + content.unreadable
        if len(found) > 2 * max_records:
            found = _newest(found, max_records)
    return FolderContent(_newest(found, max_records), torn, unreadable)


def _read_file(path: Path, query: AuditQuery) -> FolderContent:
    found: list[AuditRecord] = []
    torn = unreadable = 0
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    torn += 1
                    continue
                try:
                    record = decode_record(line)
                except BadInput:
                    unreadable += 1
                    continue
                if query.matches(record):
                    found.append(record)
    except OSError:
        unreadable += 1
    return FolderContent(found, torn, unreadable)


def _newest(records: list[AuditRecord], count: int) -> list[AuditRecord]:
    records.sort(key=lambda record: (record.wall, record.component, record.instance, record.sequence))
    return records[-count:]


def _ended_before(path: Path, since: float) -> bool:
    """Returns whether nothing was written to a file since then."""
    try:
        return path.stat().st_mtime < since
    except OSError:
        return False
