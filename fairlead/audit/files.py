"""The audit files of one process: append-only, synced to the disk, and rotated.

Each process begins files of its own, so that a torn last line stays the last one of its file. A
file is named after the moment of its beginning and its process:
`audit-20270101T120000.000000Z-gateway-NAME.jsonl`.
"""

import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

AUDIT_FILE_BYTES: Final = 16 * 1024 * 1024
"""Limit: one audit file; then the next begins."""
AUDIT_FILE_SECONDS: Final = 86_400.0
"""Limit: age at which the next audit file begins."""
AUDIT_FILES: Final = 64
"""Limit: audit files of one process; the oldest of more are removed."""
AUDIT_KEEP_SECONDS: Final = 400 * 86_400.0
"""Limit: age of the last line of a file at which it is removed."""

_FILE_NAME: Final = re.compile(r"audit-(\d{8}T\d{6}\.\d{6}Z)-([A-Za-z0-9_.-]+)\.jsonl")
_NAME_TIME: Final = "%Y%m%dT%H%M%S.%fZ"
_MODE: Final = 0o640


class AuditFiles:
    """The files of one process in a folder.

    name: of the process; it is a part of the names of its files.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        max_bytes: int = AUDIT_FILE_BYTES,
        max_seconds: float = AUDIT_FILE_SECONDS,
        max_files: int = AUDIT_FILES,
        keep_seconds: float = AUDIT_KEEP_SECONDS,
    ) -> None:
        self._folder = folder
        self._name = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]
        self._max_bytes, self._max_seconds = max_bytes, max_seconds
        self._max_files, self._keep_seconds = max_files, keep_seconds
        self._descriptor = -1
        self._began = 0.0
        self._bytes = 0

    def append(self, lines: Sequence[bytes], wall: float) -> None:
        """Writes lines and syncs them to the disk.

        Raises OSError, after it has cut the file back to what it was. If that fails too, the file
        is closed, and a part of the lines may remain.

        wall: Unix seconds, by which the files are rotated and removed.
        """
        data = b"".join(line + b"\n" for line in lines)
        self._prepare_file(len(data), wall)
        before, left = self._bytes, memoryview(data)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fdatasync(self._descriptor)
        except OSError:
            try:
                os.ftruncate(self._descriptor, before)
            except OSError:
                self.close()
            raise
        self._bytes = before + len(data)

    def close(self) -> None:
        """Closes the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _prepare_file(self, size: int, wall: float) -> None:
        is_full = self._bytes > 0 and self._bytes + size > self._max_bytes
        is_old = not 0.0 <= wall - self._began < self._max_seconds
        if self._descriptor >= 0 and not is_full and not is_old:
            return
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        moment = datetime.fromtimestamp(wall, UTC).strftime(_NAME_TIME)
        path = self._folder / f"audit-{moment}-{self._name}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _MODE)
        self._began, self._bytes = wall, os.fstat(self._descriptor).st_size
        _sync_folder(self._folder)
        self._remove_old(path, wall)

    def _remove_old(self, current: Path, wall: float) -> None:
        """Removes files that are too old, and the oldest of this process if it has too many."""
        own = []
        for began, name, path in named_files(self._folder):
            if path == current:
                continue
            if wall - began > self._keep_seconds + self._max_seconds:
                path.unlink(missing_ok=True)
            elif name == self._name:
                own.append(path)
        for path in own[: max(0, len(own) + 1 - self._max_files)]:
            path.unlink(missing_ok=True)


def named_files(folder: Path) -> list[tuple[float, str, Path]]:
    """Returns the audit files of a folder, the oldest first: beginning, process and path."""
    found = []
    for path in folder.iterdir():
        match = _FILE_NAME.fullmatch(path.name)
        if match is not None:
            began = datetime.strptime(match[1], _NAME_TIME).replace(tzinfo=UTC).timestamp()
            found.append((began, match[2], path))
    return sorted(found)


def _sync_folder(folder: Path) -> None:
    """Syncs the name of a new file to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
