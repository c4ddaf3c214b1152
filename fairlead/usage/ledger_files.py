"""The files of a ledger: one folder, to which any number of gateways append.

    ledger.json                          the id of the folder
    usage-2026-11-24-GATEWAY.jsonl       usage records
    replicas-2026-11-24-GATEWAY.jsonl    the replica log
    usage-2026-11-24-GATEWAY.total.json  totals of the first bytes of a file: a checkpoint

Each gateway appends to files of its own, whole lines only. A crash can leave an incomplete last
line, which readers skip. A file that is long enough is continued in the next segment, whose GATEWAY
ends with `~2`, `~3` and so on.
"""

import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fairlead.errors import BadInput
from fairlead.runtime.atomic_write import write_atomic

USAGE: Final = "usage"
REPLICAS: Final = "replicas"
_NAME: Final = re.compile(r"(usage|replicas)-(\d{4}-\d{2}-\d{2})-([A-Za-z0-9._~-]{1,210})\.(jsonl|total\.json)")
_ID_FILE: Final = "ledger.json"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True, order=True)
class LedgerFile:
    """A file of one kind, UTC day and gateway, with or without a checkpoint.

    kind: `USAGE` or `REPLICAS`.
    """

    day: str
    kind: str
    gateway: str
    folder: Path

    @property
    def lines(self) -> Path:
        return self.folder / f"{self.kind}-{self.day}-{self.gateway}.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.kind}-{self.day}-{self.gateway}.total.json"

    def segment(self, number: int) -> "LedgerFile":
        first = self.gateway.partition("~")[0]
        return replace(self, gateway=first if number == 1 else f"{first}~{number}")

    def next_segment(self) -> "LedgerFile":
        return self.segment(int(self.gateway.partition("~")[2] or "1") + 1)


def file_gateway_name(gateway_id: str) -> str:
    return _UNSAFE.sub("_", gateway_id)[:200] or "_"


def list_files(folder: Path) -> list[LedgerFile]:
    """Returns the ledger's files, oldest first. Raises BadInput if the folder cannot be read."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        hint = "give the folder that FAIRLEAD_USAGE_DIR of a gateway names"
        raise BadInput(f"cannot read the folder {folder}: {error.strerror}", field="--dir", hint=hint) from error
    found = {
        LedgerFile(match[2], match[1], match[3], folder) for match in map(_NAME.fullmatch, names) if match is not None
    }
    return sorted(found)


def ledger_id(folder: Path) -> str:
    """Returns the id of the folder, by which readers know that several gateways share it.

    The first call creates it. Raises OSError.
    """
    path = folder / _ID_FILE
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        drawn = folder / f".{_ID_FILE}.{uuid.uuid4().hex}"
        write_atomic(drawn, f'{{"id": "{uuid.uuid4().hex}"}}\n'.encode(), mode=0o640)
        try:
            os.link(drawn, path)  # fails if another gateway was first
        except OSError:
            if not path.exists():
                os.replace(drawn, path)
        drawn.unlink(missing_ok=True)
    return known_ledger_id(folder)


def known_ledger_id(folder: Path) -> str:
    """Returns the id of the folder; its path if it has none, as a copy of some files."""
    try:
        match = re.search(r'"id": "([0-9a-f]{32})"', (folder / _ID_FILE).read_text())
    except OSError:
        match = None
    return str(folder) if match is None else match[1]


def complete_lines(path: Path, offset: int, chunk_bytes: int = 1 << 20) -> Iterator[tuple[bytes, int]]:
    """Yields the complete lines from `offset` on, each with the offset behind it."""
    with path.open("rb") as file:
        file.seek(offset)
        rest = b""
        while chunk := file.read(chunk_bytes):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                offset += len(line) + 1
                yield line, offset
