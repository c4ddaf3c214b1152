"""The tenants file: documents of kind ModelTenant, read again after each edit.

The keys file: the API keys that clients may use, read again after each edit.

The revocation list: digests of API keys that are refused although another source lists them.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fairlead.errors import FairleadError, FileProblem, ManifestError, Unavailable
from fairlead.limits import Limits
from fairlead.runtime.file_watcher import FileWatcher, ToleratedErrors
from fairlead.tenants.documents import (
    TenantDocument,
    describe_wrong_lines,
    digests_in,
    merge_documents,
    parse_revocations,
    retain_keys,
    suspend,
    suspended_in,
)
from fairlead.tenants.model import Tenant

KeyFileParser = Callable[[bytes, str], Mapping[bytes, str]]
_log = logging.getLogger("fairlead.gateway")

TenantFileParser = Callable[[bytes, str], Sequence[TenantDocument]]


def read_file(path: Path, max_bytes: int) -> bytes:
    """Returns the content of a file. Raises Unavailable, and ManifestError for a file that is too
    long, of which it reads no more than `max_bytes`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > max_bytes:
        message = f"the file has {max(size, len(raw)):,} bytes, more than {max_bytes:,}"
        raise ManifestError((FileProblem(str(path), 1, "(file)", message, "split it"),))
    return raw


class KeyFile:
    """A keys file; `names_by_digest` is its content when it was last valid.

    parse: returns the names by digest from the content and the name of the file; None: in this
        process.
    is_loaded: whether it was valid once. Until then no key is known.
    is_valid: whether it was valid when it was last read.
    """

    def __init__(self, path: Path, limits: Limits, parse: KeyFileParser | None = None) -> None:
        self.path = path
        self._limits = limits
        self._parse = parse or self._parse_here
        self.names_by_digest: Mapping[bytes, str] = {}
        self.is_loaded = self.is_valid = False

    async def load(self) -> None:
        """Reads the file. If that fails, raises FairleadError and keeps the previous keys.

        A list without a key is valid.

        Why: a list that loses its only key must stop that key, which may have leaked.
        """
        self.is_valid = False
        raw = await asyncio.to_thread(read_file, self.path, self._limits.fleet_file_bytes)
        self.names_by_digest = await asyncio.to_thread(self._parse, raw, str(self.path))
        self.is_loaded = self.is_valid = True
        if not self.names_by_digest:
            _log.warning("%s lists no API key: every request is refused with 401 until it lists one", self.path)

    def _parse_here(self, raw: bytes, file: str) -> Mapping[bytes, str]:
        from fairlead.manifests.yaml_nodes import decode_file
        from fairlead_gateway.tenants.supervisor.key_list import parse_key_file

        return parse_key_file(decode_file(raw, file=file, limits=self._limits), file=file, limits=self._limits)


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
        return "tenants file"

    def warnings(self) -> list[str]:
        found = [] if self._watcher.problem is None else [self._watcher.problem]
        return [*found, *self.problems]

    def _parse_here(self, raw: bytes, file: str) -> Sequence[TenantDocument]:
        from fairlead.manifests.yaml_nodes import decode_file
        from fairlead_gateway.tenants.supervisor.tenant_list import parse_tenant_file

        return parse_tenant_file(decode_file(raw, file=file, limits=self._limits), file=file, limits=self._limits)


class RevocationFile:
    """A file with one digest on each line, read apart from every other file.

    digests: those of all good lines. A file that cannot be read changes nothing.
    problem: the lines that are no digests, or why the file cannot be read; None if all is well. A
        file that does not exist yet is an empty one.

    Why by line: a key must stop even if everything around it is wrong.
    """

    def __init__(self, path: Path, max_bytes: int = Limits().fleet_file_bytes) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self.digests: frozenset[bytes] = frozenset()
        self.problem: str | None = None
        self._was_read = False

    async def load(self) -> None:
        """Reads the file; never raises."""
        try:
            raw = await asyncio.to_thread(read_file, self.path, self._max_bytes)
        except FairleadError as error:
            is_missing = isinstance(error.__cause__, FileNotFoundError) and not self._was_read
            self.problem = None if is_missing else f"{error.message}; the last list of revoked keys stays"
            return
        text = raw.decode("utf-8", "replace")
        self._was_read = True
        self.digests, wrong = parse_revocations(text)
        self.problem = describe_wrong_lines(str(self.path), wrong)
