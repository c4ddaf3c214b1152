"""Checkpoints: files that say what the workers of each gateway were granted and have spent.

In strict mode, a grant is written before a worker may use it. Redis may then lose its state: the
files of all gateways contain every grant that may have been used. For this, the gateways share the
folder. A gateway merges all files when it starts and when Redis has lost its state.
"""

import contextlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from fairlead_gateway.limits.exchange import Row

SUFFIX: Final = ".quota"
_SCHEMA: Final = 1
_MAX_AGE_SECONDS: Final = 70 * 86_400.0


class TenantCheckpoint(msgspec.Struct, array_like=True):
    """The rows of one tenant, each with its limit."""

    tenant: str
    rows: list[tuple[str, Row]]


class Checkpoint(msgspec.Struct, array_like=True):
    """The content of a file."""

    schema: int
    gateway: str
    tenants: list[TenantCheckpoint]


class CheckpointFiles:
    """The checkpoints in one folder. All methods block; call them in a thread.

    max_bytes: a larger file is not read.
    """

    def __init__(self, folder: Path, gateway_id: str, max_bytes: int) -> None:
        self._folder = folder
        self._gateway_id = gateway_id
        self._path = folder / f"{_file_name(gateway_id)}{SUFFIX}"
        self._max_bytes = max_bytes
        self._writing = threading.Lock()  # a write goes on in its thread when its task is cancelled

    def write(self, tenants: Mapping[str, list[tuple[str, Row]]]) -> None:
        """Replaces this gateway's file, and returns once it is on the disk. Raises OSError."""
        content = Checkpoint(
            _SCHEMA, self._gateway_id, [TenantCheckpoint(name, rows) for name, rows in tenants.items() if rows]
        )
        with self._writing:
            self._write(content)

    def _write(self, content: Checkpoint) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.msgpack.encode(content))
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def read_all(self) -> tuple[dict[str, list[tuple[str, Row]]], list[str]]:
        """Returns the rows of all gateways' files by tenant, and a text for each unreadable file.

        Raises OSError if the folder cannot be read.
        """
        found: dict[str, list[tuple[str, Row]]] = {}
        problems: list[str] = []
        if not self._folder.is_dir():
            return found, problems
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            try:
                if path.stat().st_size > self._max_bytes:
                    raise ValueError(f"it has more than {self._max_bytes} bytes")
                content = msgspec.msgpack.decode(path.read_bytes(), type=Checkpoint)
                if content.schema != _SCHEMA:
                    raise ValueError("another release wrote it")
            except FileNotFoundError:
                continue  # another gateway has removed it as old
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                problems.append(f"{path.name}: {error}")
                continue
            for tenant in content.tenants:
                found.setdefault(tenant.tenant, []).extend(tenant.rows)
        return found, problems

    def remove_old(self, now_wall: float) -> None:
        """Removes the files of gateways that have written nothing for longer than any window.

        Raises OSError.

        Why: each pod writes a file of its own, and every start reads them all.
        """
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # another gateway removes it too
                if path != self._path and now_wall - path.stat().st_mtime > _MAX_AGE_SECONDS:
                    path.unlink()


def _file_name(gateway_id: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in gateway_id)[:200]
