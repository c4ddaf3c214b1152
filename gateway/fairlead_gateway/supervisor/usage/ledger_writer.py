"""Appends lines to the ledger's files. Blocks on the disk, so it runs in a thread."""

import os
from collections.abc import Sequence
from pathlib import Path

from fairlead.usage.ledger_files import LedgerFile


class LedgerWriter:
    """The writer of one gateway's files.

    gateway: its name in file names.
    segment_bytes: a file that is longer is continued in its next segment.
    """

    def __init__(self, folder: Path, gateway: str, segment_bytes: int) -> None:
        self._folder = folder
        self._gateway = gateway
        self._segment_bytes = segment_bytes
        self._descriptors: dict[tuple[str, str], int] = {}

    def append(self, kind: str, day: str, lines: Sequence[bytes]) -> None:
        """Appends lines to the file of a day, and forces them to the disk.

        Raises OSError; the file then holds none of the lines.
        """
        descriptor = self._open(kind, day)
        before = os.fstat(descriptor).st_size
        data = memoryview(b"".join([line + b"\n" for line in lines]))
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
        if os.fstat(descriptor).st_size >= self._segment_bytes:
            os.close(self._descriptors.pop((kind, day)))

    def close(self) -> None:
        """Closes all files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _open(self, kind: str, day: str) -> int:
        known = self._descriptors.get((kind, day))
        if known is not None:
            return known
        self._folder.mkdir(parents=True, exist_ok=True)
        file = LedgerFile(day, kind, self._gateway, self._folder)
        while not self._can_append(file):
            file = file.next_segment()
        descriptor = os.open(file.lines, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")  # a crash left an incomplete line
        _sync_folder(self._folder)
        for other in [key for key in self._descriptors if key[0] == kind]:
            os.close(self._descriptors.pop(other))
        self._descriptors[kind, day] = descriptor
        return descriptor

    def _can_append(self, file: LedgerFile) -> bool:
        """Whether the file has room.

        Lines in place of those that a checkpoint replaced would not count.
        """
        if not file.lines.exists():
            return not file.checkpoint.exists()
        return file.lines.stat().st_size < self._segment_bytes


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
