"""Appends lines to the ledger's files. Blocks on the disk, so it runs in a thread."""

import os
from collections.abc import Sequence
from pathlib import Path

from fairlead.usage.ledger_files import LedgerFile


class LedgerWriter:
    """The writer of one gateway's files.

    gateway: its name in file names.
    """

    def __init__(self, folder: Path, gateway: str) -> None:
        self._folder = folder
        self._gateway = gateway
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
        path = LedgerFile(day, kind, self._gateway, self._folder).lines
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")  # a crash left an incomplete line
        _sync_folder(self._folder)
        for other in [key for key in self._descriptors if key[0] == kind]:
            os.close(self._descriptors.pop(other))
        self._descriptors[kind, day] = descriptor
        return descriptor


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
