"""The tenants file: documents of kind ModelTenant, read again after each edit."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fairlead.errors import ManifestError
from fairlead.limits import Limits
from fairlead.runtime.file_watcher import FileWatcher, ToleratedErrors
from fairlead.tenants.documents import (
    TenantDocument,
    digests_in,
    merge_documents,
    retain_keys,
    suspend,
    suspended_in,
)
from fairlead.tenants.model import Tenant
from fairlead_gateway.supervisor.tenancy.key_file import read_file

TenantFileParser = Callable[[bytes, str], Sequence[TenantDocument]]


class TenantFile:
    """The tenants of a file; a document that is broken leaves its tenant as it was last.

    parse: returns the documents from the content and the name of the file; None: in this process.
    is_loaded: whether the file was read once.
    """

    def __init__(self, path: Path, limits: Limits, parse: TenantFileParser | None = None) -> None:
        self.path = path
        self._limits = limits
        self._parse = parse or self._parse_here
        self.problems: Sequence[str] = ()
        self._on_change: Callable[[], None] = lambda: None
        tolerated = ToleratedErrors((ManifestError,), "none of its tenants is known")
        self._watcher = FileWatcher("the tenants file", [path], self.load, tolerated=tolerated)
        self.tenants: Mapping[str, Tenant] = {}
        self.is_loaded = False

    async def start(self, on_change: Callable[[], None]) -> None:
        """Reads the file and starts watching it. Raises Unavailable if it cannot be read."""
        await self._watcher.start()
        self._on_change = on_change

    async def stop(self) -> None:
        """Stops watching."""
        await self._watcher.stop()

    async def load(self) -> None:
        """Reads the file. Raises FairleadError if it cannot be read at all.

        Keys whose digests are no longer in the file are dropped before it is parsed, and tenants
        that it suspends are suspended.
        """
        raw = await asyncio.to_thread(read_file, self.path, self._limits.fleet_file_bytes)
        if self.tenants:
            text = raw.decode("utf-8", "replace")
            kept = suspend(retain_keys(self.tenants, digests_in(text)), suspended_in(text))
            if kept != self.tenants:
                self.tenants = kept
                self._on_change()
        documents = await asyncio.to_thread(self._parse, raw, str(self.path))
        self.tenants, self.problems = merge_documents(documents, self.tenants)
        self.is_loaded = True
        self._on_change()

    def author_of(self, name: str) -> str:
        """Returns the file; nothing says who edited it."""
        return "tenants file"

    def warnings(self) -> list[str]:
        """Returns the problems of the file as it was last read."""
        found = [] if self._watcher.problem is None else [self._watcher.problem]
        return [*found, *self.problems]

    def _parse_here(self, raw: bytes, file: str) -> Sequence[TenantDocument]:
        from fairlead.manifests.yaml_nodes import decode_file
        from fairlead_gateway.supervisor.file_parsing.tenant_list import parse_tenant_file

        return parse_tenant_file(decode_file(raw, file=file, limits=self._limits), file=file, limits=self._limits)
