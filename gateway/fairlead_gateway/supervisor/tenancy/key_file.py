"""The keys file: the API keys that clients may use, read again after each edit."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from fairlead.errors import FileProblem, ManifestError, Unavailable
from fairlead.limits import Limits

KeyFileParser = Callable[[bytes, str], Mapping[bytes, str]]
_log = logging.getLogger("fairlead.gateway")


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
        from fairlead_gateway.supervisor.file_parsing.key_list import parse_key_file

        return parse_key_file(decode_file(raw, file=file, limits=self._limits), file=file, limits=self._limits)
