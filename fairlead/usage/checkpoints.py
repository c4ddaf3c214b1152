"""Checkpoints: the totals of the first bytes of a ledger's file.

Reports read a checkpoint and the lines behind it. Once a checkpoint covers a whole file of a past
day, the lines can be removed.
"""

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from fairlead.runtime.atomic_write import write_atomic
from fairlead.usage.ledger_files import USAGE, LedgerFile, complete_lines, list_files
from fairlead.usage.record import UsageRecord, UsageTable, UsageTotals
from fairlead.usage.replica_log import ReplicaLine, ReplicaSpan, ReplicaSpans

_REMEMBERED_IDS: Final = 65_536


class Checkpoint(msgspec.Struct, omit_defaults=True):
    """The totals of a file up to byte `offset`.

    - broken: lines that could not be read, such as the last one before a crash.
    - repeated: records with the id of a record shortly before, which are counted once.
    """

    offset: int = 0
    broken: int = 0
    repeated: int = 0
    usage: list[UsageTotals] = []
    replicas: list[ReplicaSpan] = []


@dataclass(slots=True)
class FileContent:
    """The content of a file: usage or replica spans."""

    offset: int = 0
    broken: int = 0
    repeated: int = 0
    usage: UsageTable = field(default_factory=UsageTable)
    spans: list[ReplicaSpan] = field(default_factory=list)

    def to_checkpoint(self) -> Checkpoint:
        return Checkpoint(self.offset, self.broken, self.repeated, self.usage.rows(), self.spans)


def read_content(file: LedgerFile) -> FileContent:
    """Returns everything that a file holds. Raises OSError."""
    for _ in range(2):
        content = _read_checkpoint(file.checkpoint)
        try:
            if file.kind == USAGE:
                _read_usage(file.lines, content)
            else:
                _read_replicas(file.lines, content)
        except FileNotFoundError:
            if content.offset:  # the lines were removed, since the checkpoint covers them
                return content
            continue  # removed between the two reads: there is a checkpoint now
        return content
    return content


def write_checkpoint(file: LedgerFile) -> FileContent:
    """Writes a checkpoint of everything that a file holds now. Raises OSError."""
    content = read_content(file)
    write_atomic(file.checkpoint, msgspec.json.encode(content.to_checkpoint()), mode=0o640)
    for path in (file.checkpoint, file.folder):  # it replaces the lines, which may be removed next
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return content


@dataclass(frozen=True, slots=True)
class Retention:
    """The bounds on the lines that a ledger keeps.

    lines_days: full days after which lines are removed; their totals stay.
    lines_bytes: most bytes of lines in closed files; beyond, the oldest are removed earlier.
    """

    lines_days: int
    lines_bytes: int


def maintain(folder: Path, today: str, keep_from: str, retention: Retention) -> list[LedgerFile]:
    """Writes checkpoints of all closed files, and removes lines that are not to be kept.

    Any gateway may do this for all files: the result is the same. Returns the files whose lines
    were removed. Raises OSError.

    today: of this day, and of later ones, only files with a next segment are closed.
    keep_from: lines of earlier days are removed.
    """
    files = list_files(folder)
    known = set(files)
    closed = [file for file in files if file.day < today or file.next_segment() in known]
    sizes = {file: file.lines.stat().st_size for file in closed if file.lines.exists()}
    excess = sum(sizes.values()) - retention.lines_bytes
    removed: list[LedgerFile] = []
    for file in sizes:
        checkpoint = _read_checkpoint(file.checkpoint)
        covered = checkpoint.offset
        if covered < sizes[file]:
            covered = write_checkpoint(file).offset
        if (file.day < keep_from or excess > 0) and covered:
            file.lines.unlink(missing_ok=True)
            excess -= sizes[file]
            removed.append(file)
    return removed


def _read_checkpoint(path: Path) -> FileContent:
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=Checkpoint)
    except FileNotFoundError:
        return FileContent()
    except msgspec.DecodeError:
        return FileContent(broken=1)
    return FileContent(saved.offset, saved.broken, saved.repeated, UsageTable(saved.usage), list(saved.replicas))


def _read_usage(path: Path, content: FileContent) -> None:
    decoder = msgspec.json.Decoder(UsageRecord)
    recent: deque[str] = deque()
    known: set[str] = set()
    for line, offset in complete_lines(path, content.offset):
        content.offset = offset
        try:
            record = decoder.decode(line)
        except msgspec.DecodeError:
            content.broken += bool(line)
            continue
        if record.id in known:
            content.repeated += 1
            continue
        known.add(record.id)
        recent.append(record.id)
        if len(recent) > _REMEMBERED_IDS:
            known.discard(recent.popleft())
        content.usage.add_record(record)


def _read_replicas(path: Path, content: FileContent) -> None:
    """Reads a replica log from its beginning: spans may have begun before the checkpoint."""
    decoder = msgspec.json.Decoder(ReplicaLine)
    spans, begin, broken = ReplicaSpans(), 0, 0
    for line, offset in complete_lines(path, 0):
        begin = offset
        try:
            spans.add(decoder.decode(line))
        except msgspec.DecodeError:
            broken += bool(line)
    spans.close()
    content.offset, content.broken, content.spans = begin, broken, spans.spans
