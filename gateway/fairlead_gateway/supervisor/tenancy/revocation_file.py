"""The revocation list: digests of API keys that are refused although another source lists them."""

import asyncio
from pathlib import Path

from fairlead.errors import FairleadError
from fairlead.limits import Limits
from fairlead.tenants.documents import describe_wrong_lines, parse_revocations
from fairlead_gateway.supervisor.tenancy.key_file import read_file


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
